package cuda_test

import (
	"testing"

	"kvferry/core/device"
	"kvferry/internal/driver"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// copyKernel has the kernel copy 64 bytes out of a device.
func copyKernel(b *drivertest.Bench, src uintptr) error {
	return b.Stream.(device.KernelStream).CopyKernel(device.DeviceToHost,
		[]device.Copy{{Dst: drivertest.AddressOf(b.Host), Src: src, Length: 64}})
}

func TestWhereKernelsCannotBeUsedTheErrorSaysSoAndTheReason(t *testing.T) {
	for function, shown := range map[string]string{
		"cuModuleLoadData": "cuModuleLoadData()", "cuModuleGetFunction": "cuModuleGetFunction()",
		"cuLaunchKernel": "cuLaunchKernel(1 copies, device to host)", "cuPointerGetAttributes": "cuPointerGetAttributes()",
	} {
		t.Run(function, func(t *testing.T) {
			simulated(t)
			drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
				simtest.Faults(t, function+":1=222")
				err := copyKernel(b, b.Memory)
				require.ErrorIs(t, err, device.ErrNoKernel)
				require.ErrorContains(t, err, "cuda:0: "+shown+" failed with 222: CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
				require.True(t, driver.FailedWith(err, 222))
				b.Copy(t, device.DeviceToHost, b.Out(0, 64))
			})
		})
	}
}

func TestKernelsThatCannotBeLoadedAreNotTriedAgain(t *testing.T) {
	simulated(t)
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		simtest.Faults(t, "cuModuleLoadData:1=222")
		first := copyKernel(b, b.Memory)
		require.ErrorIs(t, first, device.ErrNoKernel)
		require.EqualError(t, copyKernel(b, b.Memory), first.Error())
		require.EqualValues(t, 1, simtest.TakeReport(t).Calls["cuModuleLoadData"])
	})
}

// A kernel that touched this memory would break the context of the whole application, where a copy is refused.
func TestAKernelIsNotLaunchedOnMemoryThatItCannotReach(t *testing.T) {
	simulated(t)
	other := simtest.NewDevice(t, 1)
	foreign := other.Alloc(4096)
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		require.NoError(t, copyKernel(b, b.Memory))
		short, err := b.Device.Allocate(4096)
		require.NoError(t, err)
		for name, src := range map[string]uintptr{"of another context": foreign, "of nobody": 4096} {
			err := copyKernel(b, src)
			require.ErrorIs(t, err, device.ErrOutOfReach, name)
			require.NotErrorIs(t, err, device.ErrNoKernel, name)
			require.ErrorContains(t, err, "is of memory of another context, or that was freed", name)
		}
		require.NoError(t, b.Device.Free(short))
		require.ErrorIs(t, copyKernel(b, short), device.ErrOutOfReach, "freed memory")
		require.NoError(t, b.Stream.Drain(enough))
		require.EqualValues(t, 1, simtest.TakeReport(t).Calls["cuLaunchKernel"])
	})
	simtest.ResetCounters(t) // of the use of freed memory
}

func TestAKernelReachesMemoryThatIsMappedPieceByPiece(t *testing.T) {
	simulated(t)
	memory := simtest.NewDevice(t, 0).AllocVirtual(simtest.VirtualPiece, simtest.VirtualPiece)
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		require.NoError(t, copyKernel(b, memory+simtest.VirtualPiece-32))
		require.NoError(t, b.Stream.Drain(enough))
	})
}

func TestStreamsShareTheKernelsAndTheLastOneUnloadsThem(t *testing.T) {
	simulated(t)
	d := drivertest.Open(t, 0)
	drivertest.OnBench(t, d, func(b *drivertest.Bench) {
		other, err := d.NewStream()
		require.NoError(t, err)
		require.NoError(t, copyKernel(b, b.Memory))
		require.NoError(t, copyKernel(&drivertest.Bench{Device: d, Host: b.Host, Memory: b.Memory, Stream: other}, b.Memory))
		require.NoError(t, other.Drain(enough))
		require.NoError(t, other.Close())
		require.NoError(t, b.Stream.Drain(enough))
		calls := simtest.TakeReport(t).Calls
		require.EqualValues(t, 1, calls["cuModuleLoadData"])
		require.Zero(t, calls["cuModuleUnload"])
	})
	require.EqualValues(t, 1, simtest.TakeReport(t).Calls["cuModuleUnload"])
}

func TestStridedCopiesThatAreTooLongAreRefused(t *testing.T) {
	simulated(t)
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		s := device.Strided{Length: 1 << 10, Counts: [device.Dimensions]uint32{1 << 10, 1 << 8, 1 << 8, 1}}
		at := []device.Base{{Dst: drivertest.AddressOf(b.Host), Src: b.Memory}}
		stream := b.Stream.(device.StridedStream)
		err := stream.CopyStrided(device.DeviceToHost, &s, at)
		require.ErrorIs(t, err, device.ErrNoKernel)
		require.ErrorContains(t, err, "cuLaunchKernel(1 strided groups, device to host) failed with 1")
		require.NoError(t, stream.CopyStrided(device.DeviceToHost, &s, nil), "no groups")
		s.Counts = [device.Dimensions]uint32{}
		require.NoError(t, stream.CopyStrided(device.DeviceToHost, &s, at), "no copies")
		require.Zero(t, simtest.TakeReport(t).Calls["cuLaunchKernel"])
	})
}

func TestOneLaunchMakesStridedCopiesOfManyGroups(t *testing.T) {
	simulated(t)
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		s := device.Strided{Length: 1, Counts: [device.Dimensions]uint32{1, 1, 1, 2}}
		at := make([]device.Base, 600)
		for i := range at {
			at[i] = device.Base{Dst: drivertest.AddressOf(b.Host) + uintptr(i), Src: b.Memory + uintptr(i)}
		}
		require.NoError(t, b.Stream.(device.StridedStream).CopyStrided(device.DeviceToHost, &s, at))
		require.NoError(t, b.Stream.Drain(enough))
		require.EqualValues(t, 3, simtest.TakeReport(t).Calls["cuLaunchKernel"], "tables of at most 249 groups")
	})
}

func TestStridedCopiesAreRefusedIfOneGroupIsOutOfReach(t *testing.T) {
	simulated(t)
	foreign := simtest.NewDevice(t, 1).Alloc(4096)
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		// The second run of a group lies before the first one.
		s := device.Strided{Length: 16, Counts: [device.Dimensions]uint32{1, 2, 1, 1}}
		s.DstStrides[1], s.SrcStrides[1] = -1024, -1024
		inside, host := b.Memory+1024, drivertest.AddressOf(b.Host)+1024
		good := map[device.Kind]device.Base{
			device.HostToDevice: {Dst: inside, Src: host},
			device.DeviceToHost: {Dst: host, Src: inside},
			device.WithinDevice: {Dst: inside, Src: inside},
		}
		for name, at := range map[string]struct {
			kind  device.Kind
			wrong device.Base
		}{
			"into the GPU":                {device.HostToDevice, device.Base{Dst: foreign + 1024, Src: host}},
			"out of the GPU":              {device.DeviceToHost, device.Base{Dst: host, Src: foreign + 1024}},
			"within the GPU, destination": {device.WithinDevice, device.Base{Dst: foreign + 1024, Src: inside}},
			"within the GPU, source":      {device.WithinDevice, device.Base{Dst: inside, Src: foreign + 1024}},
		} {
			bases := []device.Base{good[at.kind], good[at.kind], at.wrong}
			err := b.Stream.(device.StridedStream).CopyStrided(at.kind, &s, bases)
			require.ErrorIs(t, err, device.ErrOutOfReach, name)
			require.NotErrorIs(t, err, device.ErrNoKernel, name)
		}
		require.Zero(t, simtest.TakeReport(t).Calls["cuLaunchKernel"])
	})
}
