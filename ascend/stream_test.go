package ascend_test

import (
	"math"
	"testing"
	"time"

	"kvferry/ascend"
	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

func TestABatchIsCutWhereAscendCLTakesNoMore(t *testing.T) {
	simtest.NoLeaks(t)
	const limit, block = 4096, 64
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		var out []device.Copy
		for offset := range 2 * limit {
			out = append(out, b.Out(offset*block, block))
		}
		require.NoError(t, b.Stream.CopyBatch(device.DeviceToHost, out))
		require.NoError(t, b.Stream.Drain(enough))
	})
	require.EqualValues(t, 2, simtest.TakeReport(t).Calls["aclrtMemcpyBatchAsync"])
}

func TestThereAreNoBatchesWithinADevice(t *testing.T) {
	simtest.NoLeaks(t)
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		err := b.Stream.CopyBatch(device.WithinDevice, []device.Copy{{Dst: b.Memory, Src: b.Memory + 64, Length: 64}})
		require.Equal(t, device.ErrNoBatches, err)
	})
}

func TestAnUnalignedCopyWithinTheDeviceIsRefused(t *testing.T) {
	simtest.NoLeaks(t)
	d := drivertest.Open(t, 0)
	require.EqualValues(t, 64, d.Traits().Alignment)
	drivertest.OnBench(t, d, func(b *drivertest.Bench) {
		require.Zero(t, b.Memory%d.Traits().Alignment)
		fine := device.Copy{Dst: b.Memory, Src: b.Memory + 4096, Length: 65}
		for _, bad := range []device.Copy{
			{Dst: b.Memory + 32, Src: b.Memory + 4096, Length: 64},
			{Dst: b.Memory, Src: b.Memory + 4097, Length: 64},
		} {
			issued, err := b.Stream.Copy(device.WithinDevice, []device.Copy{fine, bad, fine})
			require.Equal(t, 1, issued)
			require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
			require.ErrorContains(t, err, drivertest.Text("of 64 bytes from %#x to %#x, is not aligned to 64 bytes", bad))
		}
		require.NoError(t, b.Stream.Drain(enough))
	})
	require.Zero(t, simtest.TakeReport(t).Faults)
}

func TestABatchThatFailsNamesTheCopyItIsAbout(t *testing.T) {
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		beyond := b.Out(0, 64)
		beyond.Src += 2 * drivertest.BenchSize
		err := b.Stream.CopyBatch(device.DeviceToHost, []device.Copy{b.Out(64, 64), beyond})
		require.ErrorContains(t, err, "npu:0: aclrtMemcpyBatchAsync(2 copies, device to host) failed with 107000: ")
		require.ErrorContains(t, err, drivertest.Text("(64 bytes from %#x to %#x)", beyond))
		require.NoError(t, b.Stream.Drain(enough))
	})
}

func TestLimitsAreWhatAscendCLTakes(t *testing.T) {
	for limit, want := range map[time.Duration]int{
		-time.Second:         1,
		0:                    1,
		1:                    1,
		time.Millisecond + 1: 2,
		30 * time.Second:     30000,
		math.MaxInt64:        math.MaxInt32,
	} {
		require.Equal(t, want, ascend.Milliseconds(limit), limit)
	}
}
