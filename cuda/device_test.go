package cuda_test

import (
	"bytes"
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

func TestAThreadHasItsContextBackAfterUnbind(t *testing.T) {
	r := simulated(t)
	other, err := r.Open(0)
	require.NoError(t, err)
	current := func() int {
		index, set := simtest.CurrentDevice(t)
		require.True(t, set)
		return index
	}
	simtest.NewDevice(t, 1).Do(func() {
		require.NoError(t, other.Bind())
		require.Equal(t, 0, current())
		require.NoError(t, other.Unbind())
		require.Equal(t, 1, current())
	})
	simtest.Faults(t, "cuCtxPushCurrent_v2:1")
	require.Error(t, other.Bind())
	require.EqualValues(t, 2, simtest.TakeReport(t).Devices[0].Resets, "a context that cannot be bound is given up")
}

func TestABoundThreadDoesNotDisturbCapturesOfGraphs(t *testing.T) {
	const anything, nothing = 0, 2
	r := simulated(t)
	d, err := r.Open(0)
	require.NoError(t, err)
	drivertest.Locked(func() {
		require.NoError(t, d.Bind())
		require.Equal(t, nothing, simtest.CaptureMode(t))
		require.NoError(t, d.Unbind())
		require.Equal(t, anything, simtest.CaptureMode(t), "as before")
		simtest.Faults(t, "cuThreadExchangeStreamCaptureMode:1")
		require.ErrorContains(t, d.Bind(), "cuda:0: cuThreadExchangeStreamCaptureMode() failed with 999")
		_, set := simtest.CurrentDevice(t)
		require.False(t, set)
	})
}

func TestAContextIsGivenUpWhereItCannotBePopped(t *testing.T) {
	r := simulated(t)
	d, err := r.Open(0)
	require.NoError(t, err)
	drivertest.Locked(func() {
		require.NoError(t, d.Bind())
		simtest.Faults(t, "cuCtxPopCurrent_v2:1")
		require.ErrorContains(t, d.Unbind(), "cuda:0: cuCtxPopCurrent() failed with 999")
	})
}

func TestBatchesAreCopiedByEitherFunction(t *testing.T) {
	for function, options := range map[string]string{"cuMemcpyBatchAsync_v2": "", "cuMemcpyBatchAsync": cuda12} {
		t.Run(function, func(t *testing.T) {
			simulated(t)
			simtest.UseCUDA(t, options)
			simtest.NoLeaks(t)
			drivertest.OnBench(t, drivertest.Open(t, 1), func(b *drivertest.Bench) {
				drivertest.Fill(b.Host, 1)
				want := bytes.Clone(b.Host)
				require.NoError(t, b.Stream.CopyBatch(device.HostToDevice, []device.Copy{b.In(0, 1000), b.In(1000, 1), b.In(1001, 3000)}))
				require.NoError(t, b.Stream.Drain(enough))
				clear(b.Host)
				require.NoError(t, b.Stream.CopyBatch(device.DeviceToHost, []device.Copy{b.Out(1, 4000), b.Out(0, 1)}))
				require.NoError(t, b.Stream.Drain(enough))
				require.Equal(t, want[:4001], b.Host[:4001])
			})
			require.EqualValues(t, 2, simtest.TakeReport(t).Calls[function])
		})
	}
}

func TestABatchThatFailsNamesTheCopyThatTheOlderFunctionTells(t *testing.T) {
	simtest.UseCUDA(t, cuda12)
	drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
		beyond := b.Out(0, 64)
		beyond.Src += drivertest.BenchSize - 10
		err := b.Stream.CopyBatch(device.DeviceToHost, []device.Copy{b.Out(64, 64), beyond})
		require.ErrorContains(t, err, "cuda:0: cuMemcpyBatchAsync(2 copies, device to host) failed with 1: CUDA_ERROR_INVALID_VALUE: ")
		require.ErrorContains(t, err, drivertest.Text("(64 bytes from %#x to %#x)", beyond))
		require.NoError(t, b.Stream.Drain(enough))
	})
}

// hanging runs a test with a copy under way that does not end, and an event behind it.
func hanging(t *testing.T, test func(b *drivertest.Bench, e device.Event)) {
	simulated(t)
	d := drivertest.Open(t, 0)
	drivertest.OnBench(t, d, func(b *drivertest.Bench) {
		e, err := d.NewEvent()
		require.NoError(t, err)
		simtest.Faults(t, "exec:1=hang")
		b.Record(t, e, b.Out(0, 64))
		done, err := e.Wait(time.Millisecond)
		require.NoError(t, err)
		require.False(t, done)
		test(b, e)
	})
}

func TestWaitsThatAreGivenUpLeaveNothingBehind(t *testing.T) {
	hanging(t, func(b *drivertest.Bench, e device.Event) {
		before := simtest.TakeReport(t)
		for range 10 {
			done, err := e.Wait(time.Millisecond)
			require.NoError(t, err)
			require.False(t, done)
			require.ErrorContains(t, b.Stream.Drain(time.Millisecond), "cuda:0: the stream has not come to rest within 1ms")
		}
		after := simtest.TakeReport(t)
		require.Equal(t, before.Leaked, after.Leaked)
		require.Equal(t, before.Devices, after.Devices, "threads that were bound")
		simtest.ReleaseHangs(t)
		require.NoError(t, b.Stream.Drain(enough))
		require.NoError(t, e.Close())
	})
}

func TestAnEventThatHappensLateIsNoticed(t *testing.T) {
	simulated(t)
	d := drivertest.Open(t, 0)
	drivertest.OnBench(t, d, func(b *drivertest.Bench) {
		e, release := drivertest.Event(t, d)
		defer release()
		simtest.Cost(t, "d2h=25/20000") // 20 ms
		b.Record(t, e, b.Out(0, 64))
		done, err := e.Wait(enough)
		require.NoError(t, err)
		require.True(t, done)
	})
}

func TestAnEventThatHasNotHappenedCanBeGivenUp(t *testing.T) {
	hanging(t, func(b *drivertest.Bench, e device.Event) {
		require.NoError(t, e.Close())
		simtest.ReleaseHangs(t)
		require.NoError(t, b.Stream.Drain(enough))
	})
}

// stuck makes a stream with a copy that does not end, and release frees the memory of that copy.
func stuck(t *testing.T, d device.Device, faults string) (s device.Stream, release func()) {
	t.Helper()
	s, err := d.NewStream()
	require.NoError(t, err)
	host, err := d.AllocatePinned(64)
	require.NoError(t, err)
	memory, err := d.Allocate(64)
	require.NoError(t, err)
	simtest.Faults(t, "exec:1=hang"+faults)
	_, err = s.Copy(device.DeviceToHost, []device.Copy{{Dst: host, Src: memory, Length: 64}})
	require.NoError(t, err)
	require.Error(t, s.Drain(time.Millisecond))
	return s, func() {
		require.NoError(t, d.FreePinned(host))
		require.NoError(t, d.Free(memory))
	}
}

func TestAStreamThatIsLeftHoldsItsContext(t *testing.T) {
	simulated(t)
	d := drivertest.Open(t, 0)
	drivertest.Locked(func() {
		require.NoError(t, d.Bind())
		s, release := stuck(t, d, "")
		require.NoError(t, d.Unbind())
		require.EqualValues(t, 1, simtest.TakeReport(t).Leaked.DeviceSets, "what the copy touches is there until it ends")

		require.NoError(t, d.Bind())
		simtest.ReleaseHangs(t)
		require.NoError(t, s.Close())
		release()
		require.NoError(t, d.Unbind())
	})
}

func TestAStreamOfWhichNothingIsKnownIsGivenUpAllTheSame(t *testing.T) {
	simtest.UseCUDA(t, "") // which says that the stream is busy when it is destroyed
	d := drivertest.Open(t, 0)
	drivertest.OnThread(t, d, func() {
		s, release := stuck(t, d, ",cuStreamSynchronize:1")
		held := simtest.TakeReport(t).Leaked
		go simtest.ReleaseHangs(t) // which the simulator wants for giving up the stream
		require.ErrorContains(t, s.Close(), "cuda:0: cuStreamSynchronize() failed with 999")
		left := simtest.TakeReport(t).Leaked
		require.Equal(t, held.Streams-1, left.Streams)
		require.Equal(t, held.Events-1, left.Events)
		require.Equal(t, held.DeviceSets-1, left.DeviceSets)
		release()
	})
}
