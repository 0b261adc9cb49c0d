package staging_test

import (
	"sync"
	"testing"
	"time"

	"kvferry/core/hostmem"
	"kvferry/core/staging"

	"github.com/stretchr/testify/require"
)

// holds are the memory that staging holds, by why.
type holds struct {
	mu  sync.Mutex
	all map[string][]staging.Range
}

func newHolds() *holds { return &holds{all: map[string][]staging.Range{}} }

func (h *holds) isEmpty() bool { return len(h.now()) == 0 }

func (h *holds) hold(memory []staging.Range, why string) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(memory) > 0 {
		h.all[why] = memory
	}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.all, why)
	}
}

func (h *holds) now() map[string][]staging.Range {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[string][]staging.Range{}
	for why, memory := range h.all {
		all[why] = memory
	}
	return all
}

// newHoldingRig has its memory held by the holds that it returns.
func newHoldingRig(t *testing.T) (*rig, *faulty, *holds) {
	h, o := newHolds(), options()
	o.Timeout, o.Hold = 100*time.Millisecond, h.hold
	r, f := newFaultyRig(t, o)
	return r, f, h
}

// giveUp has a job out of the device given up because of the calls that fail, in moves of these lengths. Its memory is held then.
func giveUp(t *testing.T, r *rig, f *faulty, h *holds, fails func(call string, nth int) bool, lengths ...int) {
	t.Helper()
	lease := r.lease(staging.Out, 128*kib)
	t.Cleanup(lease.Release)
	f.failWhen(fails)
	require.ErrorContains(t, do(r.staging, staging.Out, r.lay(lease, r.memory(256*kib), lengths...)), "may still be under way")
	require.Len(t, h.now(), 1)
}

const (
	mayRead  = ", that was given up and does not end: it may still read the memory"
	mayWrite = ", that was given up and does not end: it may still write to the memory"
)

// Of strided moves, all memory from the first byte to the last is held.
func TestMemoryThatALateCopyMayReadOrWriteIsHeldUntilItHasEnded(t *testing.T) {
	for dir := range staging.Direct + 1 {
		t.Run(dir.String(), func(t *testing.T) {
			r, f, h := newHoldingRig(t)
			memory := addressOf(r.memory(64 * kib))
			runs := hostmem.Strided{Base: memory + 32*kib, Run: 128, Count: 1}
			runs.Axes[0] = hostmem.Axis{Stride: 1024, Count: 4}
			moves := []staging.Move{{Device: memory, Length: 128}, {Device: memory + 1024, Length: 128}, {Device: memory + 128, Length: 64}}
			onDevice := []staging.Range{{Addr: memory, Length: 128 + 64}, {Addr: memory + 1024, Length: 128}}
			from := memory + 16*kib
			if dir != staging.Direct {
				lease := r.lease(dir, 64*kib)
				defer lease.Release()
				from = lease.Addr
				moves = append(moves, staging.Move{Length: runs.Bytes(), Runs: &runs})
				onDevice = append(onDevice, staging.Range{Addr: runs.Base, Length: 3*1024 + 128})
			}
			for i := range moves {
				moves[i].Block = from + uintptr(i)*4096
			}
			want := map[string][]staging.Range{"a copy of host:0, " + dir.String() + mayWrite: onDevice}
			switch dir {
			case staging.Out:
				want = map[string][]staging.Range{"a copy of host:0, out" + mayRead: onDevice}
			case staging.Direct:
				want["a copy of host:0, direct"+mayRead] = []staging.Range{
					{Addr: from, Length: 128}, {Addr: from + 4096, Length: 128}, {Addr: from + 2*4096, Length: 64}}
			}

			f.failWhen(f.stuck)
			require.ErrorContains(t, do(r.staging, dir, moves), "may still be under way")
			require.Equal(t, want, h.now())
			f.failNothing()
			require.Eventually(t, h.isEmpty, 10*time.Second, time.Millisecond)
		})
	}
}

// A copy of the job is refused, and those before it do not end.
func TestMemoryOfALateCopyBeforeOneThatWasRefusedIsHeldUntilItHasEnded(t *testing.T) {
	r, f, h := newHoldingRig(t)
	giveUp(t, r, f, h, func(call string, _ int) bool { return call == "Copy" || call == "DrainInTime" }, 64*kib, 64*kib)
	f.failNothing()
	require.Eventually(t, h.isEmpty, 10*time.Second, time.Millisecond)
}

// No event could be recorded that tells when the copy has ended.
func TestMemoryOfALateCopyThatCannotBeAskedForIsHeldUntilItsStreamIsClosed(t *testing.T) {
	r, f, h := newHoldingRig(t)
	giveUp(t, r, f, h, func(call string, _ int) bool { return call == "Record" || call == "DrainInTime" }, 100)
	f.failNothing()
	require.NoError(t, r.staging.Close())
	require.Empty(t, h.now())
}

func TestMemoryOfALateCopyStaysHeldWhereItHasNotEndedWhenTheDeviceIsClosed(t *testing.T) {
	r, f, h := newHoldingRig(t)
	giveUp(t, r, f, h, f.stuck, 100)
	require.ErrorContains(t, r.staging.Close(), "are left as they are")
	require.Len(t, h.now(), 1)
	f.giveUpAll(t)
}
