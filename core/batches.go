package core

import (
	"slices"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/status"
)

// lastBatch is the number of the latest batch of the process: ids are never used again, so that one that belongs to a
// freed batch or to another engine is recognised.
var lastBatch atomic.Uint64

// AllocateBatch makes a batch that takes up to capacity requests.
func (e *Engine) AllocateBatch(capacity int) (*Batch, error) {
	if e.ctx.Err() != nil {
		return nil, closedError()
	}
	b := &Batch{id: lastBatch.Add(1), capacity: capacity, engine: e, made: clock.Now()}
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

// FreeBatch frees a batch all of whose tasks have ended; status.BatchBusy before that.
func (e *Engine) FreeBatch(b *Batch) error {
	if err := b.free(); err != nil {
		return err
	}
	e.batches.Delete(b.id)
	return nil
}

// CancelBatch gives up what is unfinished, and waits for nothing: the batch, which stays its owner's, ends when nothing
// touches its memory any more. Its tasks that have completed by then stay so.
func (e *Engine) CancelBatch(b *Batch) {
	if !b.Done() {
		b.abort(ErrDiscarded)
		e.abortTransports()
	}
}

// DiscardBatch gives up what is unfinished, waits until nothing touches its memory any more, and frees the batch. What is
// stuck in a system call or on a device may go on using the memory: the error, a status.BatchBusy with ErrInUse in it, says
// so after a while, and the batch is freed when that has ended.
func (e *Engine) DiscardBatch(b *Batch) error {
	if !b.Done() {
		e.CancelBatch(b)
		if !b.wait(b.endingTime()) {
			b.OnDone(func() { go e.FreeBatch(b) }) // fails where somebody else has freed it
			return status.Errorf(status.BatchBusy, "batch %d was given up, but its memory is %w: %s", b.id, ErrInUse, b.unfinished())
		}
	}
	return e.FreeBatch(b)
}

// endingTime is how long a batch that is given up may take to end. A copy of a device that does not end is given up by the
// device's staging, a while after Config.ProgressTimeout.
func (b *Batch) endingTime() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.pins, func(r *Region) bool { return r.Device != nil }) {
		return b.engine.ending + b.engine.config.ProgressTimeout*5/4
	}
	return b.engine.ending
}

// expire gives up a submission whose time, MC_SLICE_TIMEOUT, is over.
func (e *Engine) expire(s *submission) {
	s.abort(ErrSliceTimeout)
	e.abortTransports()
}

func (e *Engine) abortTransports() {
	e.stager.abort()
	for _, t := range e.installed() {
		t.Abort()
	}
}
