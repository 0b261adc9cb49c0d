package core

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"

	"kvferry/core/clock"
)

// A batch may be fed: a goroutine of the engine submits its requests while it is under way.
//
//  1. feedBatch counts the requests that will come, pins the local memory of all of them, and keeps the batch unfinished.
//  2. The feeder submits them, in parts if it likes. Before each part it may wait: for a segment to open, or for the end of the
//     part before.
//  3. When the feeder returns, no further tasks are added. The batch ends with its last task. Requests that were not submitted
//     count as failed.
//
// Nothing is added to a batch that was given up: Batch.add refuses it.

// feed is the requests of a batch that are still to be submitted.
type feed struct {
	ctx    context.Context // ends when the batch is given up; the cause says why
	cancel context.CancelCauseFunc
	idle   chan struct{}          // has an element when all tasks so far may have ended
	waits  atomic.Pointer[string] // why no byte can move yet; nil where bytes can
	what   string                 // what the log calls the batch
	rest   uint64                 // number of requests that were not submitted yet; Batch.mu guards it
	ended  bool                   // no more requests will be submitted; Batch.mu guards it
}

// feedBatch calls feeder on a goroutine of the engine, to submit requests to the batch. requests is how many there will be, and
// local their memory in this process. The memory is pinned: to unregister it ends the batch, also before they are submitted.
// feeder returns why it has not submitted all of them; nil when it has.
func (e *Engine) feedBatch(b *Batch, requests int, local iter.Seq[Range], feeder func(*feed) error) error {
	held := pins{ranges: requests}
	for r := range local {
		_, _ = e.memory.pinOverlapping(r, &held) // an invalid range is reported when it is submitted
	}
	f := &feed{idle: make(chan struct{}, 1), what: "transfer", rest: uint64(requests)}
	if requests == 0 { // it opens a segment, or sends a message
		f.what = "request to a peer"
	}
	f.ctx, f.cancel = context.WithCancelCause(e.ctx)
	b.mu.Lock()
	b.feed.Store(f)
	b.made = clock.Now()
	b.takePins(&held)
	b.pending.Add(1)
	b.mu.Unlock()
	if e.spawn(func() { b.endFeed(f, feeder(f)) }) {
		return nil
	}
	b.endFeed(f, ErrClosed)
	return closedError()
}

// endFeed lets the batch end with the tasks that it has. err is why some requests were not submitted.
func (b *Batch) endFeed(f *feed, err error) {
	f.cancel(nil)
	b.mu.Lock()
	f.ended = true
	first := err != nil && !b.failed
	if first {
		b.failed, b.err = true, err
		b.failure = &failure{reasonOf(err), nil, err}
	}
	if err != nil {
		b.engine.metrics.CountFailures(reasonOf(err), f.rest)
	}
	b.mu.Unlock()
	if first {
		b.engine.reportFailure(b, f.what, err)
	}
	if b.pending.Add(-1) == 0 {
		b.finishAll()
	}
}

// waitForParts waits until all tasks that a fed batch has so far have ended.
func (b *Batch) waitForParts(f *feed) {
	for b.pending.Load() > 1 {
		<-f.idle
	}
}

// wake wakes the feeder of a batch: all tasks so far have ended.
func (f *feed) wake() {
	select {
	case f.idle <- struct{}{}:
	default: // it has not seen the last wake-up yet
	}
}

// givenUp is why a fed batch takes no more requests; nil while it does. Batch.mu is held.
func (f *feed) givenUp() error {
	if f != nil && f.ctx.Err() != nil {
		return context.Cause(f.ctx)
	}
	return nil
}

// await says why no byte can move until the caller calls end.
func (f *feed) await(format string, arguments ...any) (end func()) {
	text := fmt.Sprintf(format, arguments...)
	f.waits.Store(&text)
	return func() { f.waits.Store(nil) }
}

// awaited is why no byte can move yet; "" where bytes can, as those of a batch without a feeder.
func (f *feed) awaited() string {
	if f == nil {
		return ""
	}
	if text := f.waits.Load(); text != nil {
		return *text
	}
	return ""
}

// openFor is OpenSegment for a feeder. It returns when the feeder's batch is given up, also while the peer does not answer.
func (e *Engine) openFor(f *feed, name string) (SegmentID, error) {
	type result struct {
		id  SegmentID
		err error
	}
	defer f.await("%s has not answered the handshake", name)()
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
