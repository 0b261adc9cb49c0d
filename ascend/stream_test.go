package ascend_test

import (
	"bytes"
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

// noFirstBatches builds a release with the second form of the batch only.
const noFirstBatches = "-DaclrtMemcpyBatchAsync=aclrtLaterMemcpyBatchAsync"

func TestABatchIsCopiedByTheSecondFormOfTheCallWhereTheFirstIsMissing(t *testing.T) {
	simtest.Use(t, noFirstBatches)
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		drivertest.Fill(b.Host[:4096], 1)
		want := bytes.Clone(b.Host[:4096])
		require.NoError(t, b.Stream.CopyBatch(device.HostToDevice, []device.Copy{b.In(0, 1000), b.In(1000, 3096)}))
		require.NoError(t, b.Stream.Drain(enough))
		clear(b.Host[:4096])
		require.NoError(t, b.Stream.CopyBatch(device.DeviceToHost, []device.Copy{b.Out(100, 3996), b.Out(0, 100)}))
		require.NoError(t, b.Stream.Drain(enough))
		require.Equal(t, want, b.Host[:4096])
		beyond := b.Out(0, 64)
		beyond.Src += 2 * drivertest.BenchSize
		err := b.Stream.CopyBatch(device.DeviceToHost, []device.Copy{b.Out(64, 64), beyond})
		require.ErrorContains(t, err, "npu:0: aclrtMemcpyBatchAsync(2 copies, device to host) failed with 107000: ")
	})
	require.EqualValues(t, 3, simtest.TakeReport(t).Calls["aclrtMemcpyBatchAsyncV2"])
}

func TestTheRowsOfAMatrixAreCopiedInOneCall(t *testing.T) {
	const rows, length, far, near = 20, 100, 1000, 300
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		stream := b.Stream.(device.MatrixStream)
		drivertest.Fill(b.Host[:far*rows], 1)
		want := bytes.Clone(b.Host[:far*rows])
		b.Copy(t, device.HostToDevice, b.In(0, far*rows))
		clear(b.Host[:far*rows])
		out := device.Rows{Dst: drivertest.AddressOf(b.Host), Src: b.Memory, DstPitch: near, SrcPitch: far, Length: length, Count: rows}
		require.NoError(t, stream.CopyMatrix(device.DeviceToHost, out))
		require.NoError(t, stream.Drain(enough))
		for i := range rows {
			require.Equal(t, want[i*far:][:length], b.Host[i*near:][:length], i)
			require.Equal(t, make([]byte, near-length), b.Host[i*near+length:][:near-length], "what is between the rows is left alone")
		}
		in := device.Rows{Dst: b.Memory + 7, Src: out.Dst, DstPitch: far, SrcPitch: near, Length: length, Count: rows}
		require.NoError(t, stream.CopyMatrix(device.HostToDevice, in))
		require.NoError(t, stream.Drain(enough))
		for i := range rows {
			copy(want[i*far+7:][:length], bytes.Clone(want[i*far:][:length]))
		}
		b.Copy(t, device.DeviceToHost, b.Out(0, far*rows))
		require.Equal(t, want, b.Host[:far*rows])

		within := device.Rows{Dst: b.Memory, Src: b.Memory + 65536, DstPitch: 64, SrcPitch: 64, Length: 64, Count: 2}
		require.Equal(t, device.ErrNoMatrix, stream.CopyMatrix(device.WithinDevice, within))
		many := out
		many.Count = 5<<20 + 1
		require.Equal(t, device.ErrNoMatrix, stream.CopyMatrix(device.DeviceToHost, many), "AscendCL takes no more")
		overlong := out
		overlong.Src += 2 * drivertest.BenchSize
		require.ErrorContains(t, stream.CopyMatrix(device.DeviceToHost, overlong),
			"npu:0: aclrtMemcpy2dAsync(20 rows of 100 bytes from 0x")
	})
}

func TestALibraryWithoutMatricesOrClocksSaysSo(t *testing.T) {
	simtest.Use(t, "-DaclrtMemcpy2dAsync=aclrtLaterMemcpy2dAsync -DaclrtEventElapsedTime=aclrtLaterEventElapsedTime")
	simtest.NoLeaks(t)
	d := drivertest.Open(t, 0)
	drivertest.OnBench(t, d, func(b *drivertest.Bench) {
		rows := device.Rows{Dst: drivertest.AddressOf(b.Host), Src: b.Memory, DstPitch: 64, SrcPitch: 64, Length: 64, Count: 2}
		require.Equal(t, device.ErrNoMatrix, b.Stream.(device.MatrixStream).CopyMatrix(device.DeviceToHost, rows))
		e, release := drivertest.Event(t, d)
		defer release()
		_, err := d.(device.Timer).Elapsed(e, e)
		require.ErrorContains(t, err, "npu:0: aclrtEventElapsedTime() failed with 207000")
	})
}
