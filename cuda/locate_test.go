package cuda_test

import (
	"testing"

	"kvferry/core/status"
	"kvferry/cuda"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestManagedMemoryIsThatOfTheDeviceThatItWasAllocatedFor(t *testing.T) {
	r := simulated(t)
	addr := simtest.NewDevice(t, 1).AllocManaged(4096)
	for _, location := range []string{"*", "cpu:0", "cuda:0", "cuda:1"} {
		drivertest.RequireOn(t, 1, r, addr+4095, location)
	}
}

func TestVirtualMemoryIsThatOfTheDeviceWhereSomethingIsMapped(t *testing.T) {
	r := simulated(t)
	const piece = simtest.VirtualPiece
	addr := simtest.NewDevice(t, 1).AllocVirtual(piece, -piece, piece)
	for _, at := range []uintptr{0, piece - 1, 2 * piece, 3*piece - 1} {
		drivertest.RequireOn(t, 1, r, addr+at, "*")
	}
	drivertest.RequireHost(t, r, addr+piece, "*")
}

func TestPageLockedMemoryIsSaidToBeThat(t *testing.T) {
	simulated(t)
	core, logs := observer.New(zapcore.WarnLevel)
	r := cuda.New(simtest.Library(t), zap.New(core))
	drivertest.RequireHost(t, r, simtest.NewDevice(t, 0).AllocPinned(4096), "cuda:0")
	require.Equal(t, "page-locked memory of the host", logs.TakeAll()[0].ContextMap()["is"])
	drivertest.RequireHost(t, r, drivertest.AddressOf(make([]byte, 64)), "cuda:0")
	require.Equal(t, "not known to CUDA", logs.TakeAll()[0].ContextMap()["is"])
}

func TestEveryKindOfMemoryHasItsPlace(t *testing.T) {
	const none, host, onDevice = 0, 1, 2
	for _, c := range []struct {
		kind    int
		managed bool
		index   int
		named   int
		on      int
		found   bool
	}{
		{kind: none, named: 3},
		{kind: host, index: 2, named: 3},
		{kind: onDevice, index: 2, named: 3, on: 2, found: true},
		{kind: onDevice, index: 2, named: -1, on: 2, found: true},
		{kind: onDevice, managed: true, index: 2, named: 3, on: 2, found: true},
		{kind: host, managed: true, index: 2, named: 3, on: 2, found: true}, // just now
		{kind: onDevice, managed: true, index: -1, named: 3, on: 3, found: true},
		{kind: onDevice, managed: true, index: -2, named: -1, on: 0, found: true},
	} {
		on, found, err := cuda.Decide(c.kind, c.managed, c.index, c.named)
		require.NoError(t, err)
		require.Equal(t, c.found, found, "%+v", c)
		require.Equal(t, c.on, on, "%+v", c)
	}
}

func TestAskingMakesNoContext(t *testing.T) {
	r := simulated(t)
	host := drivertest.AddressOf(make([]byte, 64))
	for _, location := range []string{"*", "cuda:0", "cuda:1"} {
		drivertest.RequireHost(t, r, host, location)
	}
	_, err := r.Open(0)
	require.NoError(t, err)
	for index, device := range simtest.TakeReport(t).Devices {
		require.Zero(t, device.Sets, "of device %d", index)
	}
}

func TestAForkedProcessIsToldThatItCannotUseCUDA(t *testing.T) {
	r := simulated(t)
	addr := simtest.NewDevice(t, 0).Alloc(64)
	drivertest.RequireOn(t, 0, r, addr, "cuda:0")
	simtest.Faults(t, "cuInit:1=3+,cuPointerGetAttributes:1=3+") // as in a child
	_, _, err := r.Locate(addr, "cuda:0")
	require.ErrorContains(t, err, "cuInit(0) failed with 3: CUDA_ERROR_NOT_INITIALIZED: initialization error")
	require.ErrorContains(t, err, "forked")
	require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
	_, err = r.Open(0)
	require.ErrorContains(t, err, "forked")
	drivertest.RequireHost(t, r, addr, "*")
}
