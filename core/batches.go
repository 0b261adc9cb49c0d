package core

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"kvferry/core/status"
)

// lastBatch is the id of the latest batch of the process. No id is used twice: the id of a freed batch, and of a batch of another
// engine, is never that of another batch.
var lastBatch atomic.Uint64

// AllocateBatch makes a batch that takes up to capacity requests.
func (e *Engine) AllocateBatch(capacity int) (*Batch, error) {
	if e.ctx.Err() != nil {
		return nil, closedError()
	}
	b := &Batch{id: lastBatch.Add(1), capacity: capacity, engine: e}
	e.batches.Store(b.id, b)
	return b, nil
}

// Batch finds a batch by its id.
func (e *Engine) Batch(id uint64) (*Batch, error) {
	if b, ok := e.batches.Load(id); ok {
		return b.(*Batch), nil
	}
	return nil, status.Errorf(status.InvalidArgument, "there is no batch %d: it was never allocated here, or is freed", id)
}

// FreeBatch frees a batch. It fails with status.BatchBusy before all of its tasks have ended.
func (e *Engine) FreeBatch(b *Batch) error {
	if err := b.free(); err != nil {
		return err
	}
	e.batches.Delete(b.id)
	return nil
}

// CancelBatch gives up the unfinished tasks, and does not wait. The batch stays its owner's, and ends when nothing touches its
// memory any more. Tasks that complete before that stay completed.
func (e *Engine) CancelBatch(b *Batch) {
	if !b.Done() {
		b.abort(ErrDiscarded)
		e.abortTransports()
	}
}

// DiscardBatch gives up the unfinished tasks, waits until nothing touches their memory any more, and frees the batch. A task
// may be stuck in a system call or on a device, and go on using its memory. After endingTime the error, a status.BatchBusy with
// ErrInUse in it, says so, and the batch is freed when the task has ended.
func (e *Engine) DiscardBatch(b *Batch) error {
	if !b.Done() {
		e.CancelBatch(b)
		if !b.wait(b.endingTime()) {
			b.OnDone(func() { go e.FreeBatch(b) }) // fails if the caller has freed it meanwhile
			return status.Errorf(status.BatchBusy, "batch %d was given up, but its memory is %w: %s", b.id, ErrInUse, b.unfinished())
		}
	}
	return e.FreeBatch(b)
}

// endingTime is how long a batch that is given up may take to end. The staging of a device gives up a copy that does not end, a
// while after Config.ProgressTimeout.
func (b *Batch) endingTime() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.pins, func(r *Region) bool { return r.Device != nil }) {
		return b.engine.ending + b.engine.config.ProgressTimeout*5/4
	}
	return b.engine.ending
}

// expire gives up a submission that has taken longer than MC_SLICE_TIMEOUT.
func (e *Engine) expire(s *submission) {
	s.abort(ErrSliceTimeout)
	e.abortTransports()
}

// Limit gives up the tasks of the batch that have not ended when so much time has passed from now. They are TimedOut then. It may
// be called once tasks were submitted, or in a batch that is fed; it does nothing in a batch that has ended.
func (b *Batch) Limit(after time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pending.Load() > 0 {
		b.timers = append(b.timers, time.AfterFunc(after, func() { b.giveUpLate(after) }))
	}
}

// giveUpLate gives up the tasks of a batch that has not ended within its time limit.
func (b *Batch) giveUpLate(limit time.Duration) {
	b.abort(fmt.Errorf("%w, %v: %v", ErrTimeLimit, limit, b.Progress()))
	b.engine.abortTransports()
}

// abortTransports has the work settled that was given up.
func (e *Engine) abortTransports() {
	e.local.abort()
	e.stager.abort()
	for _, t := range e.installed() {
		t.Abort()
	}
}
