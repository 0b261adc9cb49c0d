package cuda_test

import (
	"testing"

	"kvferry/cuda"
	"kvferry/internal/driver"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What GPUs have in common with other devices is tested in internal/driver.

const enough = drivertest.Enough

// cuda12 is a driver whose only function for batches is the older one.
const cuda12 = "-DcuMemcpyBatchAsync_v2=cuLaterMemcpyBatchAsync"

// simulated has the test use simulated GPUs, of which nothing may be left at its end, and returns them as the engine knows
// them.
func simulated(t *testing.T) *driver.Runtime {
	t.Helper()
	simtest.UseCUDA(t, "")
	simtest.NoLeaks(t)
	return inUse(t)
}

// inUse returns the simulated GPUs that the test uses.
func inUse(t *testing.T) *driver.Runtime {
	t.Helper()
	return cuda.New(simtest.Library(t), zap.NewNop())
}
