package simtest_test

import (
	"os"
	"os/exec"
	"testing"

	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// careless is set in a process that runs a test which must fail.
const careless = "KVFERRY_TEST_CARELESS"

// requireFailure runs a test in a process of its own, where it is to fail with that text.
func requireFailure(t *testing.T, text string) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	child.Env = append(os.Environ(), careless+"=1")
	output, err := child.CombinedOutput()
	require.Error(t, err, "%s", output)
	require.Contains(t, string(output), text)
}

func TestNoLeaksFailsWhenSomethingIsLeftOver(t *testing.T) {
	if os.Getenv(careless) == "" {
		requireFailure(t, "left over at the end")
		return
	}
	simtest.NoLeaks(t)
	d, err := simtest.Runtime(t).Open(0)
	require.NoError(t, err)
	simtest.NewDevice(t, 0).Do(func() { _, err = d.NewEvent() })
	require.NoError(t, err)
}

func TestNoLeaksFailsWhenSomethingWasMisused(t *testing.T) {
	if os.Getenv(careless) == "" {
		requireFailure(t, "no_device_set")
		return
	}
	simtest.NoLeaks(t)
	d, err := simtest.Runtime(t).Open(0)
	require.NoError(t, err)
	_, err = d.Allocate(64)
	require.Error(t, err, "no device is set here")
}

func TestFaultsEndWithTheTest(t *testing.T) {
	app := simtest.NewDevice(t, 0)
	t.Run("with faults", func(t *testing.T) {
		simtest.Faults(t, "aclrtMalloc:1+")
		d, err := simtest.Runtime(t).Open(0)
		require.NoError(t, err)
		app.Do(func() { _, err = d.Allocate(64) })
		require.ErrorContains(t, err, "a fault on purpose")
	})
	app.Free(app.Alloc(64))
}

func TestMemoryOfADevice(t *testing.T) {
	t.Run("of AscendCL", testMemoryOfADevice)
	t.Run("of CUDA", func(t *testing.T) {
		simtest.UseCUDA(t, "")
		testMemoryOfADevice(t)
	})
}

func testMemoryOfADevice(t *testing.T) {
	simtest.NoLeaks(t)
	app := simtest.NewDevice(t, 1)
	kept, freed := app.Alloc(1<<20), app.Alloc(64)
	app.Write(kept+1000, []byte("kv cache"))
	require.Equal(t, "kv cache", string(app.Read(kept+1000, 8)))
	app.Free(freed)
	require.EqualValues(t, 1, simtest.TakeReport(t).Leaked.DeviceAllocations)
	app.Do(func() {
		index, set := simtest.CurrentDevice(t)
		require.True(t, set)
		require.Equal(t, 1, index)
	})
}

func TestMemoryThatOnlyCUDAHas(t *testing.T) {
	simtest.UseCUDA(t, "")
	simtest.NoLeaks(t)
	app := simtest.NewDevice(t, 1)
	text := []byte("kv cache")
	const piece = simtest.VirtualPiece
	across := app.AllocVirtual(piece, 2*piece, -piece, piece)
	app.Write(across+piece-4, text)
	require.Equal(t, text, app.Read(across+piece-4, len(text)))
	managed, pinned := app.AllocManaged(64), app.AllocPinned(64)
	app.Write(managed, text)
	require.Equal(t, text, app.Read(managed, len(text)))
	leaked := simtest.TakeReport(t).Leaked
	require.EqualValues(t, 1, leaked.HostAllocations)
	require.EqualValues(t, 1, leaked.VirtualRanges)
	require.EqualValues(t, 4, leaked.DeviceAllocations)
	app.Free(pinned)
	app.Free(across)
}

func TestFacesHaveDevicesOfTheirOwn(t *testing.T) {
	npu := simtest.NewDevice(t, 0)
	at := npu.Alloc(64)
	simtest.UseCUDA(t, "")
	simtest.ResetCounters(t)
	require.Zero(t, simtest.TakeReport(t).Leaked)
	simtest.NewDevice(t, 0)
	npu.Write(at, []byte("kv cache"))
	require.Equal(t, []simtest.DeviceUse{{Sets: 1}, {}}, simtest.TakeReport(t).Devices[:2])
}

func TestFailedCallSaysWhy(t *testing.T) {
	if os.Getenv(careless) == "" {
		requireFailure(t, "cuMemAlloc_v2 on device 0: 2, cuMemAlloc_v2, call 1: a fault on purpose")
		return
	}
	simtest.UseCUDA(t, "")
	app := simtest.NewDevice(t, 0)
	simtest.Faults(t, "cuMemAlloc_v2:1=2")
	app.Alloc(64)
}
