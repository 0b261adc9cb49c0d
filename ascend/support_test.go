package ascend_test

import (
	"testing"

	"kvferry/ascend"
	"kvferry/internal/driver"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// internal/driver has the tests that NPUs share with other devices.

const enough = drivertest.Enough

// fresh returns whether this is a process for the test alone, in which AscendCL is not open and the loader does not find it.
func fresh(t *testing.T) bool {
	t.Helper()
	return drivertest.Fresh(t, false)
}

// simulated is the runtime of simulated NPUs.
func simulated(t *testing.T) *driver.Runtime { return ascend.New(simtest.Library(t), zap.NewNop()) }
