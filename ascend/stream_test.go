package ascend_test

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"kvferry/ascend"
	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/driver"
	"kvferry/sim/simtest"

	"github.com/stretchr/testify/require"
)

// bench is a device with memory and a stream, on the test's thread.
type bench struct {
	device device.Device
	host   []byte // page-locked
	memory uintptr
	stream device.Stream
}

const benchSize = 1 << 20

// onBench runs f on a thread with a bench.
func onBench(t *testing.T, d device.Device, f func(b *bench)) {
	t.Helper()
	onThread(t, d, func() {
		host, releaseHost := pinned(t, d, benchSize)
		defer releaseHost()
		memory, release := allocated(t, d, benchSize)
		defer release()
		s, closeStream := stream(t, d)
		defer closeStream()
		f(&bench{device: d, host: host, memory: memory, stream: s})
	})
}

// out and in copy between places at the same offsets of the host's and the device's memory.
func (b *bench) out(offset, n int) device.Copy {
	return device.Copy{Dst: addressOf(b.host) + uintptr(offset), Src: b.memory + uintptr(offset), Length: uint64(n)}
}

func (b *bench) in(offset, n int) device.Copy {
	c := b.out(offset, n)
	return device.Copy{Dst: c.Src, Src: c.Dst, Length: c.Length}
}

// copy has the copies made, to their end.
func (b *bench) copy(t *testing.T, kind device.Kind, copies ...device.Copy) {
	t.Helper()
	issued, err := b.stream.Copy(kind, copies)
	require.NoError(t, err)
	require.Equal(t, len(copies), issued)
	require.NoError(t, b.stream.Drain(enough))
}

func fill(b []byte, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
}

func TestCopiesGoBothWaysAndWithinTheDevice(t *testing.T) {
	simtest.NoLeaks(t)
	onBench(t, open(t, 1), func(b *bench) {
		fill(b.host, 1)
		want := bytes.Clone(b.host)
		b.copy(t, device.HostToDevice, b.in(0, 1), b.in(1, 4095), b.in(4096, benchSize-4096))
		clear(b.host)
		b.copy(t, device.DeviceToHost, b.out(0, benchSize))
		require.Equal(t, want, b.host)

		b.copy(t, device.WithinDevice, device.Copy{Dst: b.memory, Src: b.memory + 4096, Length: 1000})
		b.copy(t, device.DeviceToHost, b.out(0, 1024))
		require.Equal(t, want[4096:5096], b.host[:1000])
		require.Equal(t, want[1000:1024], b.host[1000:1024])
	})
	require.Zero(t, simtest.TakeReport(t).Pageable)
}

func TestABatchIsCopiedWhateverItsLength(t *testing.T) {
	simtest.NoLeaks(t)
	onBench(t, open(t, 0), func(b *bench) {
		fill(b.host, 2)
		want := bytes.Clone(b.host)
		const block, step = 100, 128
		var in, out []device.Copy
		for offset := 0; offset < benchSize; offset += step {
			in, out = append(in, b.in(offset, block)), append(out, b.out(offset, block))
			clear(want[offset+block : offset+step])
		}
		require.NoError(t, b.stream.CopyBatch(device.HostToDevice, nil))
		require.NoError(t, b.stream.CopyBatch(device.HostToDevice, in))
		require.NoError(t, b.stream.Drain(enough))
		clear(b.host)
		require.NoError(t, b.stream.CopyBatch(device.DeviceToHost, out))
		require.NoError(t, b.stream.Drain(enough))
		require.Equal(t, want, b.host)
	})
	const limit = 4096
	require.EqualValues(t, 2*benchSize/128/limit, simtest.TakeReport(t).Calls["aclrtMemcpyBatchAsync"])
}

func TestWhereThereAreNoBatchesTheErrorSaysSo(t *testing.T) {
	t.Run("within a device", func(t *testing.T) {
		simtest.NoLeaks(t)
		onBench(t, open(t, 0), func(b *bench) {
			err := b.stream.CopyBatch(device.WithinDevice, []device.Copy{{Dst: b.memory, Src: b.memory + 64, Length: 64}})
			require.Equal(t, device.ErrNoBatches, err)
		})
	})
	t.Run("in an older release", func(t *testing.T) {
		simtest.Use(t, simtest.OlderCANN)
		simtest.NoLeaks(t)
		onBench(t, open(t, 0), func(b *bench) {
			require.Equal(t, device.ErrNoBatches, b.stream.CopyBatch(device.DeviceToHost, []device.Copy{b.out(0, 64)}))
		})
	})
	t.Run("on a device that has none", func(t *testing.T) {
		simtest.NoLeaks(t)
		simtest.Faults(t, "aclrtMemcpyBatchAsync:1=207000")
		onBench(t, open(t, 0), func(b *bench) {
			require.Equal(t, device.ErrNoBatches, b.stream.CopyBatch(device.DeviceToHost, []device.Copy{b.out(0, 64)}))
		})
	})
}

func TestACopyThatIsRefusedIsNamedAndThoseBeforeItAreMade(t *testing.T) {
	simtest.NoLeaks(t)
	onBench(t, open(t, 0), func(b *bench) {
		fill(b.host, 3)
		want := bytes.Clone(b.host)
		copies := []device.Copy{b.in(0, 64), b.in(64, 64), b.in(128, 64), b.in(192, 64)}
		simtest.Faults(t, "aclrtMemcpyAsync:3")
		issued, err := b.stream.Copy(device.HostToDevice, copies)
		require.Equal(t, 2, issued)
		require.ErrorContains(t, err, fmtCopy("npu:0: aclrtMemcpyAsync(64 bytes from %#x to %#x, host to device) failed with 507899: ", copies[2]))
		require.ErrorContains(t, err, "a fault on purpose")

		require.NoError(t, b.stream.Drain(enough))
		clear(b.host)
		b.copy(t, device.DeviceToHost, b.out(0, 192))
		require.Equal(t, want[:128], b.host[:128])
		require.Equal(t, make([]byte, 64), b.host[128:192])
	})
}

func TestAnUnalignedCopyWithinTheDeviceIsRefused(t *testing.T) {
	simtest.NoLeaks(t)
	d := open(t, 0)
	require.EqualValues(t, 64, d.Traits().Alignment)
	onBench(t, d, func(b *bench) {
		require.Zero(t, b.memory%d.Traits().Alignment)
		fine := device.Copy{Dst: b.memory, Src: b.memory + 4096, Length: 65}
		for _, bad := range []device.Copy{
			{Dst: b.memory + 32, Src: b.memory + 4096, Length: 64},
			{Dst: b.memory, Src: b.memory + 4097, Length: 64},
		} {
			issued, err := b.stream.Copy(device.WithinDevice, []device.Copy{fine, bad, fine})
			require.Equal(t, 1, issued)
			require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
			require.ErrorContains(t, err, fmtCopy("of 64 bytes from %#x to %#x, is not aligned to 64 bytes", bad))
		}
		require.NoError(t, b.stream.Drain(enough))
	})
	require.Zero(t, simtest.TakeReport(t).Faults)
}

func TestABatchThatFailsNamesTheCopyItIsAbout(t *testing.T) {
	onBench(t, open(t, 0), func(b *bench) {
		beyond := b.out(0, 64)
		beyond.Src += 2 * benchSize
		err := b.stream.CopyBatch(device.DeviceToHost, []device.Copy{b.out(64, 64), beyond})
		require.ErrorContains(t, err, "npu:0: aclrtMemcpyBatchAsync(2 copies, device to host) failed with 107000: ")
		require.ErrorContains(t, err, fmtCopy("(64 bytes from %#x to %#x)", beyond))
		require.NoError(t, b.stream.Drain(enough))
	})
}

func TestAnEventIsWaitedForOnAnotherThreadAgainAndAgain(t *testing.T) {
	simtest.NoLeaks(t)
	simtest.Seed(t, 1)
	d := open(t, 0)
	onBench(t, d, func(b *bench) {
		e, closeEvent := event(t, d)
		defer closeEvent()
		for round := range 20 {
			fill(b.host[:4096], uint64(round))
			want := bytes.Clone(b.host[:4096])
			b.copy(t, device.HostToDevice, b.in(0, 4096))
			clear(b.host[:4096])
			_, err := b.stream.Copy(device.DeviceToHost, []device.Copy{b.out(0, 4096)})
			require.NoError(t, err)
			require.NoError(t, b.stream.Record(e))
			onThread(t, d, func() {
				done, err := e.Wait(enough)
				require.NoError(t, err)
				require.True(t, done)
			})
			require.Equal(t, want, b.host[:4096])
		}
	})
}

// releases are the simulators on which waiting is tested: older ones wait in another way.
var releases = map[string]string{"this release": "", "an older release": simtest.OlderCANN}

func TestAWaitEndsInTime(t *testing.T) {
	for name, options := range releases {
		t.Run(name, func(t *testing.T) {
			simtest.Use(t, options)
			simtest.NoLeaks(t)
			d := open(t, 0)
			onBench(t, d, func(b *bench) {
				e, closeEvent := event(t, d)
				defer closeEvent()
				simtest.Faults(t, "exec:1=hang")
				_, err := b.stream.Copy(device.DeviceToHost, []device.Copy{b.out(0, 64)})
				require.NoError(t, err)
				require.NoError(t, b.stream.Record(e))
				for _, limit := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond} {
					done, err := e.Wait(limit)
					require.NoError(t, err)
					require.False(t, done)
					err = b.stream.Drain(limit)
					require.ErrorContains(t, err, "npu:0: aclrtSynchronizeStreamWithTimeout("+limit.String()+") failed with 507046")
				}
				simtest.ReleaseHangs(t)
				done, err := e.Wait(enough)
				require.NoError(t, err)
				require.True(t, done)
				require.NoError(t, b.stream.Drain(enough))
			})
		})
	}
}

func TestACopyThatFailsLaterFailsTheWait(t *testing.T) {
	for name, options := range releases {
		t.Run(name, func(t *testing.T) {
			simtest.Use(t, options)
			simtest.NoLeaks(t)
			d := open(t, 0)
			onBench(t, d, func(b *bench) {
				e, closeEvent := event(t, d)
				defer closeEvent()
				simtest.Faults(t, "exec:1")
				_, err := b.stream.Copy(device.DeviceToHost, []device.Copy{b.out(0, 64)})
				require.NoError(t, err)
				require.NoError(t, b.stream.Record(e))
				done, err := e.Wait(enough)
				require.False(t, done)
				require.ErrorContains(t, err, "failed with 507013")
				require.ErrorContains(t, b.stream.Drain(enough), "failed with 507013")
			})
		})
	}
}

func TestADeviceThatIsLostFailsEverythingAndIsGivenBack(t *testing.T) {
	simtest.NoLeaks(t)
	d := open(t, 0)
	locked(func() {
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
		_, err = s.Copy(device.DeviceToHost, copies)
		lost := func(err error) {
			t.Helper()
			var failed *driver.Error
			require.ErrorAs(t, err, &failed)
			require.Equal(t, 507010, failed.Code)
		}
		lost(err)
		lost(s.Record(e))
		lost(e.Close())
		lost(s.Close())
		lost(d.FreePinned(host))
		lost(d.Free(memory))
		lost(d.Unbind())
	})
}

func TestEveryCallThatFailsSaysWhatFailedAndWhy(t *testing.T) {
	type call struct {
		function, text string
		code           status.Code
		do             func(b *bench) error
	}
	event := func(b *bench) device.Event {
		e, err := b.device.NewEvent()
		require.NoError(t, err)
		return e
	}
	for _, c := range []call{
		{"aclrtSetDevice", "(1)", status.DeviceNotFound, func(b *bench) error { return b.device.Bind() }},
		{"aclrtMalloc", "(4096 bytes)", status.Memory, func(b *bench) error {
			_, err := b.device.Allocate(4096)
			return err
		}},
		{"aclrtMallocHost", "(4096 bytes)", status.Memory, func(b *bench) error {
			_, err := b.device.AllocatePinned(4096)
			return err
		}},
		{"aclrtFree", "(0x", status.Memory, func(b *bench) error {
			addr, err := b.device.Allocate(4096)
			require.NoError(t, err)
			return b.device.Free(addr)
		}},
		{"aclrtFreeHost", "(0x", status.Memory, func(b *bench) error {
			addr, err := b.device.AllocatePinned(4096)
			require.NoError(t, err)
			return b.device.FreePinned(addr)
		}},
		{"aclrtCreateStream", "()", status.Context, func(b *bench) error {
			_, err := b.device.NewStream()
			return err
		}},
		{"aclrtDestroyStream", "()", status.Context, func(b *bench) error {
			s, err := b.device.NewStream()
			require.NoError(t, err)
			return s.Close()
		}},
		{"aclrtCreateEvent", "()", status.Context, func(b *bench) error {
			_, err := b.device.NewEvent()
			return err
		}},
		{"aclrtDestroyEvent", "()", status.Context, func(b *bench) error { return event(b).Close() }},
		{"aclrtRecordEvent", "()", status.Context, func(b *bench) error {
			e := event(b)
			return errors.Join(b.stream.Record(e), e.Close())
		}},
		{"aclrtSynchronizeEventWithTimeout", "(20s)", status.Context, func(b *bench) error {
			e := event(b)
			require.NoError(t, b.stream.Record(e))
			_, err := e.Wait(enough)
			return errors.Join(err, e.Close())
		}},
		{"aclrtMemcpyAsync", "(64 bytes from 0x", status.Context, func(b *bench) error {
			_, err := b.stream.Copy(device.DeviceToHost, []device.Copy{b.out(0, 64)})
			return err
		}},
		{"aclrtMemcpyBatchAsync", "(1 copies, device to host)", status.Context, func(b *bench) error {
			return b.stream.CopyBatch(device.DeviceToHost, []device.Copy{b.out(0, 64)})
		}},
		{"aclrtSynchronizeStreamWithTimeout", "(20s)", status.Context, func(b *bench) error { return b.stream.Drain(enough) }},
		{"aclrtResetDevice", "(1)", status.Context, func(b *bench) error {
			require.NoError(t, b.device.Bind())
			return b.device.Unbind()
		}},
	} {
		t.Run(c.function, func(t *testing.T) {
			simtest.NoLeaks(t)
			onBench(t, open(t, 1), func(b *bench) {
				simtest.Faults(t, c.function+":1=507899")
				err := c.do(b)
				require.Equal(t, c.code, status.Of(err, status.OK))
				require.ErrorContains(t, err, "npu:1: "+c.function+c.text)
				require.ErrorContains(t, err, "failed with 507899: "+c.function+", call 1: a fault on purpose")
			})
		})
	}
}

func TestStreamsOfManyThreadsAndDevices(t *testing.T) {
	simtest.NoLeaks(t)
	simtest.Seed(t, 7)
	devices := []device.Device{open(t, 0), open(t, 1)}
	var group sync.WaitGroup
	for i := range 6 {
		group.Go(func() {
			onBench(t, devices[i%2], func(b *bench) { churn(t, b, uint64(i)) })
		})
	}
	group.Wait()
}

// churn moves random stretches in and out again, in batches or not, and compares them.
func churn(t *testing.T, b *bench, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	e, closeEvent := event(t, b.device)
	defer closeEvent()
	for round := range 10 {
		fill(b.host, seed<<8|uint64(round))
		want := bytes.Clone(b.host)
		var in, out []device.Copy
		for offset := 0; offset < benchSize; {
			n := min(1+random.IntN(64<<10), benchSize-offset)
			in, out = append(in, b.in(offset, n)), append(out, b.out(offset, n))
			offset += n
		}
		require.NoError(t, queue(b.stream, device.HostToDevice, in, random.IntN(2) == 0))
		require.NoError(t, b.stream.Drain(enough))
		clear(b.host)
		require.NoError(t, queue(b.stream, device.DeviceToHost, out, random.IntN(2) == 0))
		require.NoError(t, b.stream.Record(e))
		done, err := e.Wait(enough)
		require.NoError(t, err)
		require.True(t, done)
		require.True(t, bytes.Equal(want, b.host))
	}
}

func queue(s device.Stream, kind device.Kind, copies []device.Copy, batched bool) error {
	if batched {
		return s.CopyBatch(kind, copies)
	}
	_, err := s.Copy(kind, copies)
	return err
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
