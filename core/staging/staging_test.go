package staging_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"kvferry/core/device"
	"kvferry/core/staging"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

func memoryAt(addr uintptr, length uint64) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), length)
}

func options() staging.Options {
	return staging.Options{BlockSize: 256 * kib, PoolSize: 2 * mib, GatherBelow: 64 * kib, Timeout: 10 * time.Second, Log: zap.NewNop()}
}

// rig is a device of a host runtime, its staging and memory on it. At the end of the test all is closed, and nothing left.
type rig struct {
	t       *testing.T
	host    *device.Host
	staging *staging.Device
}

func newRig(t *testing.T, o staging.Options, wrap func(device.Device) device.Device) *rig {
	r := &rig{t: t, host: device.NewHost("host", 1)}
	d, err := r.host.Open(0)
	require.NoError(t, err)
	t.Cleanup(func() { require.Empty(t, r.host.Leaks()) })
	if wrap != nil {
		d = wrap(d)
	}
	r.staging = staging.New(d, "host:0", o)
	t.Cleanup(func() { r.staging.Close() })
	return r
}

// memory is device memory with random bytes.
func (r *rig) memory(length int) []byte {
	b, err := r.host.Allocate(0, uint64(length))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { require.NoError(r.t, r.host.Free(b)) })
	fill(b)
	return b
}

func fill(b []byte) {
	var seed [32]byte
	binary.NativeEndian.PutUint64(seed[:], rand.Uint64())
	rand.NewChaCha8(seed).Read(b)
}

func (r *rig) lease(dir staging.Direction, want uint64) *staging.Lease {
	a := r.staging.Account(dir, staging.Initiator, nil)
	l, err := a.Lease(context.Background(), want)
	require.NoError(r.t, err)
	return l
}

// do has a job done.
func do(d *staging.Device, dir staging.Direction, moves []staging.Move) error {
	done := make(chan error, 1)
	d.Start(dir, &staging.Job{Moves: moves, Done: func(err error) { done <- err }})
	return <-done
}

// lay places a stretch of device memory of each length in a lease.
func (r *rig) lay(l *staging.Lease, memory []byte, lengths ...int) []staging.Move {
	var moves []staging.Move
	end, from := uint64(0), 0
	for _, n := range lengths {
		at := r.staging.Place(end, addressOf(memory)+uintptr(from), uint64(n))
		moves = append(moves, staging.Move{Device: addressOf(memory) + uintptr(from), Block: l.Addr + uintptr(at), Length: uint64(n)})
		end, from = at+uint64(n), from+n+1
	}
	require.LessOrEqual(r.t, end, l.Length)
	return moves
}

func TestBytesPassBothWays(t *testing.T) {
	for name, lengths := range map[string][]int{
		"nothing":          {},
		"one byte":         {1},
		"small moves":      {100, 4096, 1, 63, 64, 65, 8192},
		"big moves":        {65 * kib, 70 * kib},
		"small and big":    {10, 64 * kib, 20, 65 * kib, 30},
		"one small of few": {10, 64 * kib},
	} {
		for _, batches := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				r := newRig(t, options(), nil)
				r.host.Batches = batches
				memory := r.memory(256 * kib)
				for _, dir := range []staging.Direction{staging.Out, staging.In} {
					l := r.lease(dir, 256*kib)
					moves := r.lay(l, memory, lengths...)
					fill(memoryAt(l.Addr, l.Length))
					require.NoError(t, do(r.staging, dir, moves))
					for _, m := range moves {
						require.True(t, bytes.Equal(memoryAt(m.Device, m.Length), memoryAt(m.Block, m.Length)))
					}
					l.Release()
				}
			})
		}
	}
}

func TestJobsFromManyGoroutines(t *testing.T) {
	r := newRig(t, options(), nil)
	var running sync.WaitGroup
	for range 8 {
		memory, back := r.memory(512*kib), r.memory(512*kib)
		running.Go(func() {
			for at := 0; at < len(memory); at += 32 * kib {
				out, in := r.lease(staging.Out, 32*kib), r.lease(staging.In, 32*kib)
				moves := r.lay(out, memory[at:], 1000, 3000, 20000)
				require.NoError(t, do(r.staging, staging.Out, moves))
				copy(memoryAt(in.Addr, 32*kib), memoryAt(out.Addr, 32*kib))
				out.Release()
				for i := range moves {
					moves[i].Block += in.Addr - out.Addr
					moves[i].Device += addressOf(back) - addressOf(memory)
				}
				require.NoError(t, do(r.staging, staging.In, moves))
				in.Release()
				for _, m := range moves {
					from := m.Device - addressOf(back) + addressOf(memory)
					require.True(t, bytes.Equal(memoryAt(from, m.Length), memoryAt(m.Device, m.Length)))
				}
			}
		})
	}
	running.Wait()
}

func TestJobsAreDoneInTheOrderOfTheirStarts(t *testing.T) {
	r := newRig(t, options(), nil)
	l := r.lease(staging.Out, 64*kib)
	moves := r.lay(l, r.memory(64*kib), 100, 200)
	done := make(chan int, 100)
	for i := range cap(done) {
		r.staging.Start(staging.Out, &staging.Job{Moves: moves, Done: func(err error) {
			assert.NoError(t, err)
			done <- i
		}})
	}
	for i := range cap(done) {
		require.Equal(t, i, <-done)
	}
	l.Release()
}

// newHookedRig returns a rig that calls hook before each call of the device.
func newHookedRig(t *testing.T, hook func(r *rig, call string, nth int)) *rig {
	r, f := newFaultyRig(t, options())
	f.fail = func(call string, nth int) error {
		f.mu.Unlock() // other calls may be made meanwhile
		defer f.mu.Lock()
		hook(r, call, nth)
		return nil
	}
	return r
}

// within fails the test if something does not happen in time.
func within(t *testing.T, happened <-chan struct{}, what string) {
	select {
	case <-happened:
	case <-time.After(10 * time.Second):
		t.Error(what)
	}
}

func TestAJobIsIssuedWhileTheOneBeforeIsWaitedFor(t *testing.T) {
	issued, second := make(chan struct{}), make(chan error, 1)
	r := newHookedRig(t, func(r *rig, call string, nth int) {
		switch {
		case call == "Wait" && nth == 1:
			r.staging.Start(staging.Out, &staging.Job{Done: func(err error) { second <- err }})
			within(t, issued, "the second job is not issued")
		case call == "Record" && nth == 2:
			close(issued)
		}
	})
	require.NoError(t, do(r.staging, staging.Out, nil))
	require.NoError(t, <-second)
}

func TestAJobIsCompletedWhileTheNextIsIssued(t *testing.T) {
	const before = 10 // jobs, after which the threads are up and asleep
	first, second := make(chan struct{}), make(chan error, 1)
	r := newHookedRig(t, func(r *rig, call string, nth int) {
		switch {
		case call == "Record" && nth == before+1:
			r.staging.Start(staging.Out, &staging.Job{Done: func(err error) { second <- err }})
		case call == "Record" && nth == before+2:
			within(t, first, "the first job is not completed")
		}
	})
	for range before {
		require.NoError(t, do(r.staging, staging.Out, nil))
	}
	r.staging.Start(staging.Out, &staging.Job{Done: func(error) { close(first) }})
	require.NoError(t, <-second)
}

// TestDoneMayCallStaging makes a chain of jobs, each started by the one before it.
func TestDoneMayCallStaging(t *testing.T) {
	r := newRig(t, options(), nil)
	memory, ended := r.memory(64*kib), make(chan struct{})
	out, in := r.staging.Account(staging.Out, staging.Target, func() {}), r.staging.Account(staging.In, staging.Target, func() {})
	first := r.lease(staging.Out, 64*kib)
	r.lease(staging.In, 64*kib).Release() // there is a block for both ways from here on
	var link func(n int, dir staging.Direction, l *staging.Lease)
	link = func(n int, dir staging.Direction, l *staging.Lease) {
		r.staging.Start(dir, &staging.Job{Moves: r.lay(l, memory, 1000, 1000), Done: func(err error) {
			assert.NoError(t, err)
			l.Release()
			if n == 0 {
				close(ended)
				return
			}
			account := [...]*staging.Account{out, in}[1-dir]
			next, err := account.TryLease(64 * kib)
			assert.NoError(t, err)
			link(n-1, 1-dir, next)
		}})
	}
	link(20, staging.Out, first)
	<-ended
}

func TestCloseWaitsForTheJobsThatWereStarted(t *testing.T) {
	r := newRig(t, options(), nil)
	l := r.lease(staging.Out, 64*kib)
	moves := r.lay(l, r.memory(64*kib), 100, 200)
	var done atomic.Int32
	for range 100 {
		r.staging.Start(staging.Out, &staging.Job{Moves: moves, Done: func(err error) {
			assert.NoError(t, err)
			done.Add(1)
		}})
	}
	require.NoError(t, r.staging.Close())
	require.EqualValues(t, 100, done.Load())
	require.Empty(t, slices.DeleteFunc(r.host.Leaks(), func(leak string) bool { return strings.Contains(leak, "page-locked: false") }))
	l.Release()
}

func TestAClosedDeviceTakesNothing(t *testing.T) {
	r := newRig(t, options(), nil)
	a := r.staging.Account(staging.In, staging.Initiator, nil)
	require.NoError(t, r.staging.Close())
	require.NoError(t, r.staging.Close(), "again")
	require.ErrorIs(t, do(r.staging, staging.In, nil), staging.ErrClosed)
	_, err := a.Lease(t.Context(), 1)
	require.ErrorIs(t, err, staging.ErrClosed)
}

func TestNothingIsMadeBeforeItIsNeeded(t *testing.T) {
	r, f := newFaultyRig(t, options())
	r.staging.Account(staging.Out, staging.Initiator, nil).Close()
	r.staging.Expect(staging.Out)
	require.Empty(t, f.calls)
	r.lease(staging.Out, 1)
	require.Equal(t, 1, f.count("AllocatePinned"))
	require.LessOrEqual(t, f.count("Bind"), 2)
	require.Zero(t, f.count("Allocate"), "nothing was gathered")
}

func TestMemoryStaysWithinThePool(t *testing.T) {
	o := options()
	r, f := newFaultyRig(t, o)
	var running sync.WaitGroup
	for range 16 {
		memory := r.memory(512 * kib)
		running.Go(func() { assert.Zero(t, workload(r, memory)) })
	}
	running.Wait()
	require.LessOrEqual(t, uint64(f.count("AllocatePinned")), o.PoolSize/o.BlockSize)
	require.LessOrEqual(t, f.count("Allocate"), 2, "gather blocks")
	require.LessOrEqual(t, f.count("Bind"), 4, "threads")
	require.LessOrEqual(t, f.count("NewStream"), 2)
}

func TestStatsCount(t *testing.T) {
	r := newRig(t, options(), nil)
	l := r.lease(staging.Out, 256*kib)
	moves := r.lay(l, r.memory(256*kib), 63, 127, 64*kib)
	require.NoError(t, do(r.staging, staging.Out, moves))
	s := r.staging.Stats(staging.Out)
	require.Positive(t, s.Copying)
	s.Waits, s.Copying = 0, 0
	require.Equal(t, staging.Stats{Jobs: 1, Bytes: 63 + 127 + 64*kib, Copies: 2, Within: 2, Gathered: 2, Blocks: 2, Leased: 256 * kib}, s)
	require.Equal(t, staging.Stats{}, r.staging.Stats(staging.In))
}

// late is a device that can be asked whether a copy is done, and does not answer before it is.
type late struct{ asking }

func (d late) NewEvent() (device.Event, error) {
	e, err := d.asking.NewEvent()
	return lateEvent{e}, err
}

func (d late) NewStream() (device.Stream, error) {
	s, err := d.asking.NewStream()
	return lateStream{s}, err
}

type lateEvent struct{ device.Event }

func (e lateEvent) Wait(time.Duration) (bool, error) { return e.Event.Wait(10 * time.Second) }

type lateStream struct{ device.Stream }

func (s lateStream) Record(e device.Event) error { return s.Stream.Record(e.(lateEvent).Event) }

// Who forwards the bytes of a job wakes threads: once for all jobs that have ended.
func TestJobsThatHaveEndedAreReportedTogether(t *testing.T) {
	r := newRig(t, options(), func(d device.Device) device.Device { return late{asking{d}} })
	const others = 4
	calls, ended := make(chan string, 4*others), make(chan struct{})
	job := func(then func(), last bool) *staging.Job {
		return &staging.Job{
			Done: func(err error) {
				assert.NoError(t, err)
				calls <- "done"
				then()
			},
			After: func() {
				calls <- "after"
				if last {
					close(ended)
				}
			},
		}
	}
	r.staging.Start(staging.Out, job(func() {
		for i := range others {
			r.staging.Start(staging.Out, job(func() {}, i == others-1))
		}
		for r.staging.InFlight(staging.Out) < others { // the other thread issues them
			runtime.Gosched()
		}
	}, false))
	<-ended
	for _, want := range []string{"done", "after", "done", "done", "done", "done", "after", "after", "after", "after"} {
		require.Equal(t, want, <-calls)
	}
}

func TestAJobThatIsNotDoneIsToldThatToo(t *testing.T) {
	r := newRig(t, options(), nil)
	require.NoError(t, r.staging.Close())
	calls := make(chan string, 2)
	r.staging.Start(staging.Out, &staging.Job{
		Done: func(err error) {
			assert.ErrorIs(t, err, staging.ErrClosed)
			calls <- "done"
		},
		After: func() { calls <- "after" },
	})
	require.Equal(t, "done", <-calls)
	require.Equal(t, "after", <-calls)
}
