package driver_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// onAllReleases is onAll, with an older release of each library as well.
func onAllReleases(t *testing.T, test func(t *testing.T, k *kind)) {
	onAll(t, func(t *testing.T, k *kind) {
		for name, options := range map[string]string{"this release": "", "an older release": k.older} {
			t.Run(name, func(t *testing.T) {
				k.use(t, options)
				test(t, k)
			})
		}
	})
}

func TestCopiesGoBothWaysAndWithinTheDevice(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		const size = drivertest.BenchSize
		drivertest.OnBench(t, drivertest.Open(t, 1), func(b *drivertest.Bench) {
			drivertest.Fill(b.Host, 1)
			want := bytes.Clone(b.Host)
			b.Copy(t, device.HostToDevice, b.In(0, 1), b.In(1, 4095), b.In(4096, size-4096))
			clear(b.Host)
			b.Copy(t, device.DeviceToHost, b.Out(0, size))
			require.Equal(t, want, b.Host)

			b.Copy(t, device.WithinDevice, device.Copy{Dst: b.Memory, Src: b.Memory + 4096, Length: 1000})
			b.Copy(t, device.DeviceToHost, b.Out(0, 1024))
			require.Equal(t, want[4096:5096], b.Host[:1000])
			require.Equal(t, want[1000:1024], b.Host[1000:1024])
		})
		require.Zero(t, simtest.TakeReport(t).Pageable)
	})
}

func TestABatchIsCopiedWhateverItsLength(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
			drivertest.Fill(b.Host, 2)
			want := bytes.Clone(b.Host)
			const block, step = 100, 128
			var in, out []device.Copy
			for offset := 0; offset < drivertest.BenchSize; offset += step {
				in, out = append(in, b.In(offset, block)), append(out, b.Out(offset, block))
				clear(want[offset+block : offset+step])
			}
			require.NoError(t, b.Stream.CopyBatch(device.HostToDevice, nil))
			require.NoError(t, b.Stream.CopyBatch(device.HostToDevice, in))
			require.NoError(t, b.Stream.Drain(enough))
			clear(b.Host)
			require.NoError(t, b.Stream.CopyBatch(device.DeviceToHost, out))
			require.NoError(t, b.Stream.Drain(enough))
			require.Equal(t, want, b.Host)
		})
		require.Zero(t, simtest.TakeReport(t).Copies["d2d"])
	})
}

func TestWhereThereAreNoBatchesTheErrorSaysSo(t *testing.T) {
	refused := func(t *testing.T) {
		simtest.NoLeaks(t)
		drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
			require.Equal(t, device.ErrNoBatches, b.Stream.CopyBatch(device.DeviceToHost, []device.Copy{b.Out(0, 64)}))
		})
	}
	onAll(t, func(t *testing.T, k *kind) {
		t.Run("in an older release", func(t *testing.T) {
			k.use(t, k.older)
			refused(t)
		})
		t.Run("on a device that has none", func(t *testing.T) {
			simtest.Faults(t, k.noBatches)
			refused(t)
		})
	})
}

func TestACopyThatIsRefusedIsNamedAndThoseBeforeItAreMade(t *testing.T) {
	copies := map[*kind][2]string{
		npus: {"aclrtMemcpyAsync", "npu:0: aclrtMemcpyAsync(64 bytes from %#x to %#x, host to device) failed with 507899: "},
		gpus: {"cuMemcpyHtoDAsync_v2", "cuda:0: cuMemcpyHtoDAsync(64 bytes from %#x to %#x) failed with 999: "},
	}
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		drivertest.OnBench(t, drivertest.Open(t, 0), func(b *drivertest.Bench) {
			drivertest.Fill(b.Host, 3)
			want := bytes.Clone(b.Host)
			list := []device.Copy{b.In(0, 64), b.In(64, 64), b.In(128, 64), b.In(192, 64)}
			simtest.Faults(t, copies[k][0]+":3")
			issued, err := b.Stream.Copy(device.HostToDevice, list)
			require.Equal(t, 2, issued)
			require.ErrorContains(t, err, drivertest.Text(copies[k][1], list[2]))

			require.NoError(t, b.Stream.Drain(enough))
			clear(b.Host)
			b.Copy(t, device.DeviceToHost, b.Out(0, 192))
			require.Equal(t, want[:128], b.Host[:128])
			require.Equal(t, make([]byte, 64), b.Host[128:192])
		})
	})
}

func TestAnEventIsWaitedForOnAnotherThreadAgainAndAgain(t *testing.T) {
	onAllReleases(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		simtest.Seed(t, 1)
		d := drivertest.Open(t, 0)
		drivertest.OnBench(t, d, func(b *drivertest.Bench) {
			e, closeEvent := drivertest.Event(t, d)
			defer closeEvent()
			for round := range 20 {
				drivertest.Fill(b.Host[:4096], uint64(round))
				want := bytes.Clone(b.Host[:4096])
				b.Copy(t, device.HostToDevice, b.In(0, 4096))
				clear(b.Host[:4096])
				b.Record(t, e, b.Out(0, 4096))
				drivertest.OnThread(t, d, func() {
					done, err := e.Wait(enough)
					require.NoError(t, err)
					require.True(t, done)
				})
				require.Equal(t, want, b.Host[:4096])
			}
		})
	})
}

func TestAWaitEndsInTime(t *testing.T) {
	onAllReleases(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		d := drivertest.Open(t, 0)
		drivertest.OnBench(t, d, func(b *drivertest.Bench) {
			e, closeEvent := drivertest.Event(t, d)
			defer closeEvent()
			simtest.Faults(t, "exec:1=hang")
			b.Record(t, e, b.Out(0, 64))
			for _, limit := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond} {
				done, err := e.Wait(limit)
				require.NoError(t, err)
				require.False(t, done)
				err = b.Stream.Drain(limit)
				require.ErrorContains(t, err, k.at("0"))
				require.ErrorContains(t, err, limit.String())
			}
			simtest.ReleaseHangs(t)
			done, err := e.Wait(enough)
			require.NoError(t, err)
			require.True(t, done)
			require.NoError(t, b.Stream.Drain(enough))
		})
	})
}

func TestACopyThatFailsLaterFailsTheWait(t *testing.T) {
	onAllReleases(t, func(t *testing.T, k *kind) {
		d := drivertest.Open(t, 0)
		drivertest.Locked(func() {
			require.NoError(t, d.Bind())
			memory, err := d.Allocate(64)
			require.NoError(t, err)
			host, err := d.AllocatePinned(64)
			require.NoError(t, err)
			s, err := d.NewStream()
			require.NoError(t, err)
			e, err := d.NewEvent()
			require.NoError(t, err)
			simtest.Faults(t, "exec:1")
			_, err = s.Copy(device.DeviceToHost, []device.Copy{{Dst: host, Src: memory, Length: 64}})
			require.NoError(t, err)
			if err = s.Record(e); err == nil { // it has not failed yet, or this library tells who waits only
				var done bool
				done, err = e.Wait(enough)
				require.False(t, done)
			}
			require.ErrorContains(t, err, "failed with "+k.broken)
			require.ErrorContains(t, s.Drain(enough), "failed with "+k.broken)
			giveUp(d, s, e, host, memory)
		})
	})
}

// giveUp releases everything, and returns the errors. The thread is no longer bound then.
func giveUp(d device.Device, s device.Stream, e device.Event, host, memory uintptr) []error {
	return []error{e.Close(), s.Close(), d.FreePinned(host), d.Free(memory), d.Unbind()}
}

func TestADeviceThatIsLostFailsEverythingAndIsGivenBack(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		d := drivertest.Open(t, 0)
		drivertest.Locked(func() {
			require.NoError(t, d.Bind())
			memory, err := d.Allocate(4096)
			require.NoError(t, err)
			host, err := d.AllocatePinned(4096)
			require.NoError(t, err)
			s, err := d.NewStream()
			require.NoError(t, err)
			e, err := d.NewEvent()
			require.NoError(t, err)
			copies := []device.Copy{{Dst: host, Src: memory, Length: 4096}}

			simtest.Faults(t, "lost:0@1")
			_, err = s.Copy(device.DeviceToHost, copies)
			require.NoError(t, err)
			require.Error(t, s.Drain(enough))
			_, refused := s.Copy(device.DeviceToHost, copies)
			for _, err := range append([]error{refused, s.Record(e)}, giveUp(d, s, e, host, memory)...) {
				require.ErrorContains(t, err, k.at("0"))
				require.ErrorContains(t, err, "failed with "+k.lost)
			}
		})
	})
}

// doing is a use of a device, by a Bench, that makes a certain call.
type doing func(b *drivertest.Bench) error

func newEvent(b *drivertest.Bench, use func(e device.Event) error) error {
	e, err := b.Device.NewEvent()
	if err != nil {
		return err
	}
	return errors.Join(use(e), e.Close())
}

func bind(b *drivertest.Bench) error {
	if err := b.Device.Bind(); err != nil {
		return err
	}
	return b.Device.Unbind()
}

func allocate(b *drivertest.Bench) error {
	addr, err := b.Device.Allocate(4096)
	if err != nil {
		return err
	}
	return b.Device.Free(addr)
}

func allocatePinned(b *drivertest.Bench) error {
	addr, err := b.Device.AllocatePinned(4096)
	if err != nil {
		return err
	}
	return b.Device.FreePinned(addr)
}

func makeStream(b *drivertest.Bench) error {
	s, err := b.Device.NewStream()
	if err != nil {
		return err
	}
	return s.Close()
}

func makeEvent(b *drivertest.Bench) error {
	return newEvent(b, func(device.Event) error { return nil })
}

func record(b *drivertest.Bench) error { return newEvent(b, b.Stream.Record) }

func copyOut(b *drivertest.Bench) error {
	_, err := b.Stream.Copy(device.DeviceToHost, []device.Copy{b.Out(0, 64)})
	return err
}

func copyBatch(b *drivertest.Bench) error {
	return b.Stream.CopyBatch(device.DeviceToHost, []device.Copy{b.Out(0, 64)})
}

func wait(b *drivertest.Bench) error {
	return newEvent(b, func(e device.Event) error {
		if err := b.Stream.Record(e); err != nil {
			return err
		}
		_, err := e.Wait(enough)
		return err
	})
}

func drain(b *drivertest.Bench) error { return b.Stream.Drain(enough) }

func TestEveryCallThatFailsSaysWhatFailedAndWhy(t *testing.T) {
	type call struct {
		function, text string
		code           status.Code
		do             doing
	}
	calls := map[*kind][]call{
		npus: {
			{"aclrtSetDevice", "(1)", status.DeviceNotFound, bind},
			{"aclrtResetDevice", "(1)", status.Context, bind},
			{"aclrtMalloc", "(4096 bytes)", status.Memory, allocate},
			{"aclrtFree", "(0x", status.Memory, allocate},
			{"aclrtMallocHost", "(4096 bytes)", status.Memory, allocatePinned},
			{"aclrtFreeHost", "(0x", status.Memory, allocatePinned},
			{"aclrtCreateStream", "()", status.Context, makeStream},
			{"aclrtDestroyStream", "()", status.Context, makeStream},
			{"aclrtCreateEvent", "()", status.Context, makeEvent},
			{"aclrtDestroyEvent", "()", status.Context, makeEvent},
			{"aclrtRecordEvent", "()", status.Context, record},
			{"aclrtSynchronizeEventWithTimeout", "(20s)", status.Context, wait},
			{"aclrtMemcpyAsync", "(64 bytes from 0x", status.Context, copyOut},
			{"aclrtMemcpyBatchAsync", "(1 copies, device to host)", status.Context, copyBatch},
			{"aclrtSynchronizeStreamWithTimeout", "(20s)", status.Context, drain},
		},
		gpus: {
			{"cuDeviceGet", "(1)", status.DeviceNotFound, bind},
			{"cuDevicePrimaryCtxRetain", "(1)", status.Context, bind},
			{"cuCtxPushCurrent_v2", "()", status.Context, bind},
			{"cuThreadExchangeStreamCaptureMode", "()", status.Context, bind},
			{"cuDevicePrimaryCtxRelease_v2", "(1)", status.Context, bind},
			{"cuMemAlloc_v2", "(4096 bytes)", status.Memory, allocate},
			{"cuMemFree_v2", "(0x", status.Memory, allocate},
			{"cuMemHostAlloc", "(4096 bytes)", status.Memory, allocatePinned},
			{"cuMemFreeHost", "(0x", status.Memory, allocatePinned},
			{"cuDevicePrimaryCtxRetain", "(1)", status.Context, makeStream},
			{"cuDevicePrimaryCtxRelease_v2", "(1)", status.Context, makeStream},
			{"cuStreamCreateWithPriority", "()", status.Context, makeStream},
			{"cuStreamSynchronize", "()", status.Context, makeStream},
			{"cuStreamDestroy_v2", "()", status.Context, makeStream},
			{"cuEventCreate", "()", status.Context, makeEvent},
			{"cuEventCreate", "()", status.Context, makeStream},
			{"cuEventDestroy_v2", "()", status.Context, makeEvent},
			{"cuEventRecord", "()", status.Context, record},
			{"cuEventQuery", "()", status.Context, wait},
			{"cuMemcpyDtoHAsync_v2", "(64 bytes from 0x", status.Context, copyOut},
			{"cuMemcpyBatchAsync_v2", "(1 copies, device to host)", status.Context, copyBatch},
			{"cuEventRecord", "()", status.Context, drain},
		},
	}
	onAll(t, func(t *testing.T, k *kind) {
		for _, c := range calls[k] {
			t.Run(c.function, func(t *testing.T) {
				simtest.NoLeaks(t)
				drivertest.OnBench(t, drivertest.Open(t, 1), func(b *drivertest.Bench) {
					simtest.Faults(t, c.function+":1="+k.fault)
					err := c.do(b)
					require.Equal(t, c.code, status.Of(err, status.OK))
					require.ErrorContains(t, err, k.at("1")+": "+shown(c.function)+c.text)
					require.ErrorContains(t, err, "failed with "+k.fault+": ")
				})
			})
		}
	})
}

// shown is a function by its name in the vendor's documents, which leave versions out.
func shown(function string) string { return strings.TrimSuffix(function, "_v2") }

func TestStreamsOfManyThreadsAndDevices(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		simtest.Seed(t, 7)
		devices := []device.Device{drivertest.Open(t, 0), drivertest.Open(t, 1)}
		var group sync.WaitGroup
		for i := range 6 {
			group.Go(func() {
				drivertest.OnBench(t, devices[i%2], func(b *drivertest.Bench) { churn(t, b, uint64(i)) })
			})
		}
		group.Wait()
	})
}

// churn moves random stretches in and out again, in batches or not, and compares them.
func churn(t *testing.T, b *drivertest.Bench, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	e, closeEvent := drivertest.Event(t, b.Device)
	defer closeEvent()
	for round := range 10 {
		drivertest.Fill(b.Host, seed<<8|uint64(round))
		want := bytes.Clone(b.Host)
		var in, out []device.Copy
		for offset := 0; offset < drivertest.BenchSize; {
			n := min(1+random.IntN(64<<10), drivertest.BenchSize-offset)
			in, out = append(in, b.In(offset, n)), append(out, b.Out(offset, n))
			offset += n
		}
		require.NoError(t, queue(b.Stream, device.HostToDevice, in, random.IntN(2) == 0))
		require.NoError(t, b.Stream.Drain(enough))
		clear(b.Host)
		require.NoError(t, queue(b.Stream, device.DeviceToHost, out, random.IntN(2) == 0))
		require.NoError(t, b.Stream.Record(e))
		done, err := e.Wait(enough)
		require.NoError(t, err)
		require.True(t, done)
		require.True(t, bytes.Equal(want, b.Host))
	}
}

func queue(s device.Stream, kind device.Kind, copies []device.Copy, batched bool) error {
	if batched {
		return s.CopyBatch(kind, copies)
	}
	_, err := s.Copy(kind, copies)
	return err
}

func TestTimedEventsTellWhatCopiesTakeOnTheDevice(t *testing.T) {
	onAll(t, func(t *testing.T, k *kind) {
		simtest.NoLeaks(t)
		simtest.Cost(t, "d2h=1/30")
		d := drivertest.Open(t, 0)
		timer := d.(device.Timer)
		require.Same(t, timer.Tables(), drivertest.Open(t, 0).(device.Timer).Tables(), "they are the device's, not this opening's")
		require.NotSame(t, timer.Tables(), drivertest.Open(t, 1).(device.Timer).Tables())
		drivertest.OnBench(t, d, func(b *drivertest.Bench) {
			from, err := timer.NewTimedEvent()
			require.NoError(t, err)
			defer func() { require.NoError(t, from.Close()) }()
			to, err := timer.NewTimedEvent()
			require.NoError(t, err)
			defer func() { require.NoError(t, to.Close()) }()
			_, err = timer.Elapsed(from, to)
			require.Error(t, err, "they were not recorded")
			require.NoError(t, b.Stream.Record(from))
			b.Copy(t, device.DeviceToHost, b.Out(0, 1000), b.Out(1000, 9000))
			require.NoError(t, b.Stream.Record(to))
			done, err := to.Wait(enough)
			require.True(t, done)
			require.NoError(t, err)
			takes, err := timer.Elapsed(from, to)
			require.NoError(t, err)
			require.InDelta(t, 70_000, takes.Nanoseconds(), 10, "two copies, and their bytes")
		})
	})
}
