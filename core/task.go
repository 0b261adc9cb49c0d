package core

import (
	"errors"
	"sync/atomic"

	"kvferry/core/status"
)

// State is the state of a task. The values are those of the C interface's STATUS_*.
type State uint32

const (
	Waiting   State = 0
	Completed State = 4
	TimedOut  State = 5
	Failed    State = 6
)

// ErrSliceTimeout is why a task is TimedOut: it took longer than MC_SLICE_TIMEOUT.
var ErrSliceTimeout = errors.New("given up after MC_SLICE_TIMEOUT")

// ErrTimeLimit is why a task is TimedOut whose batch has not ended within its own time limit.
var ErrTimeLimit = errors.New("its time limit is over")

// ErrStalled is why tasks fail whose bytes have not moved for too long.
var ErrStalled = errors.New("no progress")

// ErrDiscarded is why tasks fail when the owner of their batch has given it up.
var ErrDiscarded = errors.New("given up by the caller")

// ErrClosed is why the tasks of a closed engine fail, and the calls of one.
var ErrClosed = errors.New("the engine is closed")

// ErrEarlierFailed is why a transfer in the order of a stream was not queued: an earlier one has failed, and no call has
// returned that yet.
var ErrEarlierFailed = errors.New("an earlier transfer in the order of a stream failed")

// ErrPartFailed ends the rest of a task of which a part has failed for another reason.
var ErrPartFailed = errors.New("another part of it failed")

// errWraps is why a task with an impossible range fails.
var errWraps = status.Errorf(status.InvalidArgument, "the range wraps around the address space")

// lost is or-ed into the state of a task that will fail, while some of its bytes are still outstanding.
const lost = 1 << 8

// Task is one request and its state.
type Task struct {
	Request
	Next int32 // index of the next task of the same Work, or -1

	state       atomic.Uint32 // a State, or one with lost
	outstanding uint64        // bytes not settled; changed atomically once the batch has the task
}

// result is the task's state as callers see it and, when it is Completed, its length.
func (t *Task) result() (State, uint64) {
	state := t.state.Load()
	switch {
	case state&lost != 0:
		return Waiting, 0
	case State(state) == Completed:
		return Completed, t.Length
	}
	return State(state), 0
}
