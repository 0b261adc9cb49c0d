package core

import (
	"errors"
	"sync/atomic"

	"kvferry/core/status"
)

// State is what a task has come to. The values are those of the C interface's STATUS_*.
type State uint32

const (
	Waiting   State = 0
	Completed State = 4
	TimedOut  State = 5
	Failed    State = 6
)

// ErrSliceTimeout is why a task is TimedOut: its time, MC_SLICE_TIMEOUT, was over.
var ErrSliceTimeout = errors.New("given up after MC_SLICE_TIMEOUT")

// ErrDiscarded is why the tasks of a batch that its owner discarded fail.
var ErrDiscarded = errors.New("given up by the caller")

// ErrClosed is why tasks fail whose engine is destroyed, and why a closed engine takes no calls.
var ErrClosed = errors.New("the engine is closed")

// ErrEarlierFailed is why a transfer in the order of a stream was not queued: one before it failed, when nobody waited.
var ErrEarlierFailed = errors.New("an earlier transfer in the order of a stream failed")

// ErrPartFailed ends the rest of a task of which a part has failed already, for a reason of its own.
var ErrPartFailed = errors.New("another part of it failed")

// errWraps is why a task fails that no memory could hold.
var errWraps = status.Errorf(status.InvalidArgument, "the range wraps around the address space")

// lost is or-ed into the state of a task that will fail, while some of its bytes are still outstanding.
const lost = 1 << 8

// Task is one request and what has become of it.
type Task struct {
	Request
	Next int32 // index of the next task of the same Work, or -1

	state       atomic.Uint32 // a State, or one with lost
	outstanding uint64        // bytes not settled; changed atomically once the batch has the task
}

func (t *Task) look() (State, uint64) {
	state := t.state.Load()
	switch {
	case state&lost != 0:
		return Waiting, 0
	case State(state) == Completed:
		return Completed, t.Length
	}
	return State(state), 0
}
