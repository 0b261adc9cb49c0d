package core

import (
	"context"
	"iter"
)

// A batch may be fed: its requests are submitted while it is under way, by a goroutine of the engine.
//
//  1. feedBatch counts the requests that will come, pins the local memory of all of them, and keeps the batch unfinished.
//  2. The feeder submits them, in parts if it likes, each after what it waits for: a segment to open, or the former part.
//  3. When the feeder returns, the batch has as many tasks as it ever will; it ends with the last of them. What was not
//     submitted by then counts as failed.
//
// A batch that is given up is fed no further: Batch.add refuses what comes later.

// feed is what is still to come to a batch.
type feed struct {
	ctx    context.Context // ends when the batch is given up; the cause says why
	cancel context.CancelCauseFunc
	idle   chan struct{} // has an element when everything that was submitted may have ended
	rest   uint64        // requests that were not submitted yet; Batch.mu guards it
	ended  bool          // no more will be submitted; Batch.mu guards it
}

// feedBatch has feeder submit to the batch from a goroutine of the engine. requests is how many there will be, and local
// their memory here: to unregister it ends the batch, also before they are submitted. feeder returns why it has not
// submitted all of them; nil when it has.
func (e *Engine) feedBatch(b *Batch, requests int, local iter.Seq[Range], feeder func(*feed) error) error {
	held := pins{ranges: requests}
	for r := range local {
		_, _ = e.memory.pinOverlapping(r, &held) // what is wrong with the range is found when it is submitted
	}
	f := &feed{idle: make(chan struct{}, 1), rest: uint64(requests)}
	f.ctx, f.cancel = context.WithCancelCause(e.ctx)
	b.mu.Lock()
	b.feed.Store(f)
	b.takePins(&held)
	b.pending.Add(1)
	b.mu.Unlock()
	if e.spawn(func() { b.endFeed(f, feeder(f)) }) {
		return nil
	}
	b.endFeed(f, ErrClosed)
	return closedError()
}

// endFeed ends the batch's waiting for more requests. err is why some of them never came.
func (b *Batch) endFeed(f *feed, err error) {
	f.cancel(nil)
	b.mu.Lock()
	f.ended = true
	first := err != nil && !b.failed
	if first {
		b.failed, b.err = true, err
	}
	b.mu.Unlock()
	if first {
		b.engine.reportFailure(b, err)
	}
	if b.pending.Add(-1) == 0 {
		b.finishAll()
	}
}

// waitForParts returns when everything that was submitted to a fed batch has ended.
func (b *Batch) waitForParts(f *feed) {
	for b.pending.Load() > 1 {
		<-f.idle
	}
}

// wake tells the feeder of a batch that everything that was submitted has ended.
func (f *feed) wake() {
	select {
	case f.idle <- struct{}{}:
	default: // told already
	}
}

// givenUp is why a fed batch takes no more requests; nil while it does. Batch.mu is held.
func (f *feed) givenUp() error {
	if f != nil && f.ctx.Err() != nil {
		return context.Cause(f.ctx)
	}
	return nil
}

// openFor is OpenSegment for a feeder, which does not wait for a peer any longer when its batch is given up.
func (e *Engine) openFor(f *feed, name string) (SegmentID, error) {
	type result struct {
		id  SegmentID
		err error
	}
	opened := make(chan result, 1)
	if !e.spawn(func() {
		id, err := e.OpenSegment(name)
		opened <- result{id, err}
	}) {
		return -1, ErrClosed
	}
	select {
	case r := <-opened:
		return r.id, r.err
	case <-f.ctx.Done():
		return -1, context.Cause(f.ctx)
	}
}
