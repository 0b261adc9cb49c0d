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

// What NPUs have in common with other devices is tested in internal/driver.

const enough = drivertest.Enough

// fresh is whether this is a process for the test alone, in which AscendCL is not opened and not found by the loader.
func fresh(t *testing.T) bool {
	t.Helper()
	return drivertest.Fresh(t, false)
}

// simulated is AscendCL on simulated devices, as the engine knows it.
func simulated(t *testing.T) *driver.Runtime { return ascend.New(simtest.Library(t), zap.NewNop()) }
