package staging_test

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/staging"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func newFaultyRig(t *testing.T, o staging.Options) (*rig, *faulty) {
	var f *faulty
	r := newRig(t, o, func(d device.Device) device.Device {
		f = newFaulty(d)
		return f
	})
	return r, f
}

// workload is jobs of each direction, one after the other, whose results are checked. It returns how many failed; each
// does so for the injected reason.
func workload(r *rig, memory []byte) (failed int) {
	for i := range 6 {
		for _, dir := range []staging.Direction{staging.Out, staging.In} {
			if err := workOnce(r, dir, memory[i*32*kib:]); err != nil {
				requireInjected(r.t, err)
				failed++
			}
		}
	}
	return failed
}

func requireInjected(t *testing.T, err error) {
	if !strings.Contains(err.Error(), "not done within") { // no call returns an error then
		require.ErrorIs(t, err, errInjected)
	}
}

// workOnce does a job of small moves, two of them on unaligned addresses, and a big one.
func workOnce(r *rig, dir staging.Direction, memory []byte) error {
	l, err := r.staging.Account(dir, staging.Initiator, nil).Lease(r.t.Context(), 128*kib)
	if err != nil {
		return err
	}
	defer l.Release()
	moves := r.lay(l, memory, 63, 127, 4095, 100, 100, 100, 64*kib)
	fill(memoryAt(l.Addr, l.Length))
	if err := do(r.staging, dir, moves); err != nil {
		return err
	}
	for _, m := range moves {
		require.True(r.t, bytes.Equal(memoryAt(m.Device, m.Length), memoryAt(m.Block, m.Length)), "a job that failed counts as done")
	}
	return nil
}

// calls is every call of a device.
var calls = []string{"Bind", "Unbind", "Allocate", "AllocatePinned", "Free", "FreePinned", "NewStream", "NewEvent", "Copy", "CopyBatch",
	"Record", "Drain", "CloseStream", "Wait", "WaitInTime", "CloseEvent"}

// TestEveryCallMayFail has each call fail at its first, middle and last use, with batches and without. At most the job that
// it was made for fails, with the reason; the next one is done; nothing leaks.
func TestEveryCallMayFail(t *testing.T) {
	for _, batches := range []bool{false, true} {
		uses := map[string]int{}
		t.Run("none", func(t *testing.T) {
			r, f := newFaultyRig(t, options())
			r.host.Batches = batches
			require.Zero(t, workload(r, r.memory(512*kib)))
			require.NoError(t, r.staging.Close())
			uses = f.calls
		})
		for _, call := range calls {
			for _, nth := range []int{1, (uses[call] + 1) / 2, uses[call]} {
				if uses[call] > 0 {
					t.Run(fmt.Sprintf("%s %d of %d, batches %v", call, nth, uses[call], batches), func(t *testing.T) {
						failOne(t, call, nth, batches)
					})
				}
			}
		}
	}
}

func failOne(t *testing.T, call string, nth int, batches bool) {
	r, f := newFaultyRig(t, options())
	r.host.Batches = batches
	f.failNth(call, nth)
	memory := r.memory(512 * kib)
	failed := workload(r, memory)
	switch call {
	case "Unbind", "Free", "FreePinned", "CloseStream", "CloseEvent":
		require.Zero(t, failed)
		require.ErrorIs(t, r.staging.Close(), errInjected)
		f.giveUpAll(t)
		return
	case "Bind", "Allocate":
		require.Zero(t, failed, "one thread is enough, and no gather block is needed")
	default:
		require.Equal(t, 1, failed, "jobs failed")
	}
	f.failNothing()
	require.Zero(t, workload(r, memory))
	require.NoError(t, r.staging.Close())
}

// stuck has jobs hang on the device.
func (f *faulty) stuck(call string, _ int) bool { return call == "WaitInTime" || call == "DrainInTime" }

// impatient are options with a short time limit. An eighth of it is for a stream to come to rest, on a busy machine too.
func impatient() staging.Options {
	o := options()
	o.Timeout = 800 * time.Millisecond
	return o
}

func TestAJobThatCannotBeGivenUpFailsAllOnItsStreamAndBlocksAreNotUsedAgain(t *testing.T) {
	r, f := newFaultyRig(t, impatient())
	memory := r.memory(512 * kib)
	f.failWhen(f.stuck)
	l := r.lease(staging.Out, 4*kib)
	const jobs = 4
	done := make(chan error, jobs)
	for range jobs {
		r.staging.Start(staging.Out, &staging.Job{Moves: r.lay(l, memory, 100, 100), Done: func(err error) { done <- err }})
	}
	for range jobs {
		err := <-done
		require.ErrorContains(t, err, "not done within 800ms")
		require.ErrorContains(t, err, "may still be under way")
	}
	l.Release()
	f.failNothing()
	next := r.lease(staging.Out, 4*kib)
	require.NotEqual(t, l.Addr, next.Addr, "a copy may still write there")
	next.Release()
	require.Zero(t, workload(r, memory))
	require.NoError(t, r.staging.Close(), "the stream has come to rest, so all can be freed")
}

func TestABusyStreamIsNotClosed(t *testing.T) {
	r, f := newFaultyRig(t, impatient())
	memory := r.memory(512 * kib)
	f.failWhen(f.stuck)
	require.ErrorContains(t, workOnce(r, staging.Out, memory), "may still be under way")
	require.Zero(t, f.count("CloseStream"), "that may take for ever")
	f.failNothing()
	require.NoError(t, r.staging.Close())
	require.Equal(t, 1, f.count("CloseStream"))
}

func TestAStreamIsNotTouchedByTwoThreadsWhileItRecovers(t *testing.T) {
	r, f := newFaultyRig(t, options())
	issuing, second := make(chan struct{}), make(chan error, 1)
	f.failWhen(func(call string, nth int) bool {
		f.mu.Unlock() // other calls may be made meanwhile
		defer f.mu.Lock()
		switch {
		case call == "Wait" && nth == 1:
			r.staging.Start(staging.Out, &staging.Job{Done: func(err error) { second <- err }})
			<-issuing
			return true
		case call == "Record" && nth == 2:
			close(issuing)
			for !r.staging.Recovers(staging.Out) {
				runtime.Gosched()
			}
			assert.Zero(t, f.count("Drain"))
		}
		return false
	})
	require.ErrorIs(t, do(r.staging, staging.Out, nil), errInjected)
	require.NoError(t, <-second)
	require.Equal(t, 1, f.count("Drain"))
}

func TestAStreamThatFailedIsReplaced(t *testing.T) {
	r, f := newFaultyRig(t, options())
	memory := r.memory(512 * kib)
	f.failWhen(func(call string, nth int) bool { return call == "Wait" && nth == 1 || call == "Drain" })
	require.ErrorIs(t, workOnce(r, staging.Out, memory), errInjected)
	require.Equal(t, 1, f.count("CloseStream"))
	require.NoError(t, workOnce(r, staging.Out, memory))
	require.Equal(t, 2, f.count("NewStream"))
	require.NoError(t, r.staging.Close())
}

func TestWhenADeviceStaysStuckItsMemoryIsLeftAlone(t *testing.T) {
	r, f := newFaultyRig(t, impatient())
	memory := r.memory(512 * kib)
	require.NoError(t, workOnce(r, staging.Out, memory))
	f.failWhen(f.stuck)
	require.ErrorIs(t, workOnce(r, staging.Out, memory), errInjected)
	require.ErrorContains(t, r.staging.Close(), "are left as they are")
	require.Zero(t, f.count("CloseStream"))
	require.Zero(t, f.count("Free")+f.count("FreePinned"))
	f.giveUpAll(t)
}

func TestAStreamThatCannotBeClosedIsClosedOnceAndBlocksAreNotUsedAgain(t *testing.T) {
	r, f := newFaultyRig(t, options())
	memory := r.memory(512 * kib)
	f.failWhen(func(call string, nth int) bool {
		return call == "Wait" && nth == 1 || call == "Drain" || call == "CloseStream"
	})
	l := r.lease(staging.Out, 4*kib)
	require.ErrorContains(t, do(r.staging, staging.Out, r.lay(l, memory, 100, 100)), "may still be under way")
	l.Release()
	f.failNothing()
	next := r.lease(staging.Out, 4*kib)
	require.NotEqual(t, l.Addr, next.Addr)
	next.Release()
	require.NoError(t, r.staging.Close())
	require.Equal(t, 1, f.count("CloseStream"))
	require.Len(t, f.live, 1, "all but that stream is given back")
	f.giveUpAll(t)
}

func TestWithoutAThreadOnTheDeviceJobsAndLeasesFailAndLaterOnesGoOn(t *testing.T) {
	r, f := newFaultyRig(t, options())
	memory := r.memory(512 * kib)
	f.failWhen(func(call string, _ int) bool { return call == "Bind" })
	for range 3 {
		require.ErrorIs(t, workOnce(r, staging.Out, memory), errInjected)
		require.ErrorIs(t, do(r.staging, staging.Out, nil), errInjected)
	}
	f.failNothing()
	require.Zero(t, workload(r, memory))
}

func TestWithoutDeviceMemoryForGatheringMovesAreCopiedOneByOne(t *testing.T) {
	r, f := newFaultyRig(t, options())
	f.failWhen(func(call string, _ int) bool { return call == "Allocate" })
	require.Zero(t, workload(r, r.memory(512*kib)))
	require.Equal(t, 2, f.count("Allocate"), "once for each direction, not for each job")
	require.Zero(t, r.staging.Stats(staging.Out).Gathered)
}

func TestBatchesAreTriedOnce(t *testing.T) {
	r, f := newFaultyRig(t, options())
	require.Zero(t, workload(r, r.memory(512*kib)))
	require.Equal(t, 1, f.count("CopyBatch"), "what comes from the device can all be gathered")
	require.NotZero(t, r.staging.Stats(staging.Out).Gathered)
}

func TestAPanicEndsAJobOnly(t *testing.T) {
	r, f := newFaultyRig(t, options())
	memory := r.memory(512 * kib)
	f.mu.Lock()
	f.fail = func(call string, nth int) error {
		if call == "Copy" && nth == 1 {
			panic("index out of range")
		}
		return nil
	}
	f.mu.Unlock()
	require.ErrorContains(t, workOnce(r, staging.Out, memory), "index out of range")
	require.NoError(t, workOnce(r, staging.Out, memory))
}

func TestCloseDoesNotWaitForEachJobBehindAStuckOne(t *testing.T) {
	r, f := newFaultyRig(t, impatient())
	memory := r.memory(512 * kib)
	l := r.lease(staging.Out, 4*kib)
	moves := r.lay(l, memory, 100)
	done, closed := make(chan error, 10), make(chan error)
	f.failWhen(func(call string, nth int) bool { // while the first job is being waited for
		if call == "WaitInTime" && nth == 1 {
			for range 9 {
				r.staging.Start(staging.Out, &staging.Job{Moves: moves, Done: func(err error) { done <- err }})
			}
			go func() { closed <- r.staging.Close() }()
			for r.accepts() {
				runtime.Gosched()
			}
		}
		return f.stuck(call, nth)
	})
	r.staging.Start(staging.Out, &staging.Job{Moves: moves, Done: func(err error) { done <- err }})
	for range 10 {
		require.ErrorContains(t, <-done, "not done within")
	}
	require.Error(t, <-closed)
	require.LessOrEqual(t, f.count("WaitInTime"), 2)
	f.giveUpAll(t)
}

// accepts reports whether the staging is not being closed.
func (r *rig) accepts() bool {
	a := r.staging.Account(staging.Out, staging.Initiator, func() {})
	defer a.Close()
	l, err := a.TryLease(1)
	if l != nil {
		l.Release()
	}
	return err == nil
}
