package driver_test

import (
	"testing"

	"kvferry/ascend"
	"kvferry/cuda"
	"kvferry/internal/driver"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The tests of this package run on simulated devices of each kind.

const enough = drivertest.Enough

// kind is a kind of device, with the properties of its library that differ.
type kind struct {
	name     string // of its locations
	device   string // what one is called
	file     string // the library
	variable string // of the environment, that names another
	new      func(file string, log *zap.Logger) *driver.Runtime
	use      func(t testing.TB, options string) // has the test use the simulator that was built so
	older    string                             // of the simulator, for a release that has no batches

	first  string // of the functions that are looked up
	locate string // the function that tells where memory is

	// Codes, as errors show them.
	fault  string // of a call that is to fail
	broken string // of waiting for a copy that has failed
	lost   string // of calls on a device that is lost

	batch     string // the function that copies a batch
	noKernel  string // a fault that has small blocks copied without a kernel
	noBatches string // a fault that has small blocks copied without one
	failsOnce string // a fault that has one job of copies fail, and no others
	gathers   bool   // without batches
}

var npus = &kind{
	name: "npu", device: "NPU", file: "libascendcl.so", variable: "KVFERRY_ASCENDCL",
	new: ascend.New, use: simtest.Use, older: simtest.OlderCANN,
	first: "aclInit", locate: "aclrtPointerGetAttributes",
	fault: "507899", broken: "507013", lost: "507010",
	batch: "aclrtMemcpyBatchAsync", noBatches: "aclrtMemcpyBatchAsync:1=207000+", failsOnce: "exec:1", gathers: true,
}

var gpus = &kind{
	name: "cuda", device: "GPU", file: "libcuda.so.1", variable: "KVFERRY_CUDA",
	new: cuda.New, use: simtest.UseCUDA, older: simtest.OlderCUDA,
	first: "cuInit", locate: "cuPointerGetAttributes",
	fault: "999", broken: "700", lost: "46",
	batch: "cuMemcpyBatchAsync_v2", noKernel: "cuLaunchKernel:1=801+,", noBatches: "cuLaunchKernel:1=801+,cuMemcpyBatchAsync_v2:1=801+", failsOnce: "cuEventRecord:1",
}

// onAll runs a test for each kind of devices.
func onAll(t *testing.T, test func(t *testing.T, k *kind)) {
	for _, k := range []*kind{npus, gpus} {
		t.Run(k.name, func(t *testing.T) {
			k.use(t, "")
			test(t, k)
		})
	}
}

// onAllFresh runs a test for each kind of devices in a process of its own that has not opened the library, which the
// loader finds, if it is to.
func onAllFresh(t *testing.T, loaderFinds bool, test func(t *testing.T, k *kind)) {
	for _, k := range []*kind{npus, gpus} {
		t.Run(k.name, func(t *testing.T) {
			if drivertest.FreshLibrary() == "" {
				k.use(t, "")
			}
			if drivertest.Fresh(t, loaderFinds) {
				test(t, k)
			}
		})
	}
}

// at is a location on a device of the kind.
func (k *kind) at(index string) string { return k.name + ":" + index }

// logged returns a runtime of that library, and what it warns of.
func (k *kind) logged(library string) (*driver.Runtime, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.WarnLevel)
	return k.new(library, zap.New(core)), logs
}
