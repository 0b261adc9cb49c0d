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

// internal/driver has the tests that GPUs share with other devices.

const enough = drivertest.Enough

// cuda12 builds a driver that has only the older function for batches.
const cuda12 = "-DcuMemcpyBatchAsync_v2=cuLaterMemcpyBatchAsync"

// simulated has the test use simulated GPUs, on which it must leak nothing, and returns their runtime.
func simulated(t *testing.T) *driver.Runtime {
	t.Helper()
	simtest.UseCUDA(t, "")
	simtest.NoLeaks(t)
	return inUse(t)
}

// inUse returns the runtime of the simulated GPUs that the test uses.
func inUse(t *testing.T) *driver.Runtime {
	t.Helper()
	return cuda.New(simtest.Library(t), zap.NewNop())
}
