package core

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"kvferry/core/clock"

	"go.uber.org/zap"
)

// How tasks end:
//
//  1. endUnmoved ends the tasks that no transport gets: those without bytes, and those that were refused.
//  2. settle counts off the bytes of a task. An error marks the task as lost; the first one of the batch is its reason.
//  3. end makes the state final when no byte is outstanding. The last task of the batch counts what has ended (count.go), and waits
//     for the notifications.
//  4. finishAll releases what the batch held, and calls the functions that OnDone was given.
//
// abort gives up what has not ended: the transports look at Work.Aborted, and settle it.

// endUnmoved ends the tasks of a submission that are in no work.
func (b *Batch) endUnmoved(s *submission) {
	for _, r := range s.refused {
		b.settle(&s.tasks[r.task], s.tasks[r.task].Length, r.reason)
	}
	if !s.empty {
		return
	}
	for i := range s.tasks {
		if s.tasks[i].Length == 0 {
			b.end(&s.tasks[i])
		}
	}
}

// settle ends so many bytes of a task. err is why they did not arrive; nil when they did.
func (b *Batch) settle(task *Task, part uint64, err error) {
	if err != nil {
		b.lose(task, err)
	}
	if atomic.AddUint64(&task.outstanding, -part) == 0 {
		b.end(task)
	}
}

// lose marks a task as one that will fail.
func (b *Batch) lose(task *Task, err error) {
	final := Failed
	if errors.Is(err, ErrSliceTimeout) || errors.Is(err, ErrTimeLimit) {
		final = TimedOut
	}
	if !task.state.CompareAndSwap(uint32(Waiting), uint32(final)|lost) {
		return
	}
	why := reasonOf(err)
	b.engine.countFailure(task.Target, why)
	b.mu.Lock()
	first := !b.failed
	if first {
		b.failed = true
		b.failure = &failure{why, task, err}
		b.err = fmt.Errorf("%v of %d bytes at %#x of segment %d (local %#x): %w",
			task.Opcode, task.Length, task.Remote, task.Target, task.Local, err)
	}
	reason := b.err
	b.mu.Unlock()
	if first {
		b.engine.reportFailure(b, "transfer", reason)
	}
}

// reportFailure logs the first failure of a batch, and calls the batch what. The states of the tasks show the others. A transport
// may hold locks while it settles: logging does not wait.
func (e *Engine) reportFailure(b *Batch, what string, reason error) {
	if errors.Is(reason, ErrDiscarded) || errors.Is(reason, ErrClosed) {
		e.log.Info(what+" given up", zap.Uint64("batch", b.id), zap.Error(reason))
		return
	}
	e.log.Warn(what+" failed", zap.Uint64("batch", b.id), zap.Error(reason))
}

// end ends a task that has no outstanding bytes. The last task of the batch ends after the notifications were sent.
func (b *Batch) end(task *Task) {
	if b.ending.Add(-1) == 0 {
		if ctx, messages := b.allEnded(); len(messages) > 0 {
			b.engine.deliver(ctx, messages, func() { b.finish(task) })
			return
		}
	}
	b.finish(task)
}

// allEnded counts what has ended. It returns the notifications to send now, none when a task failed, and the context to send them
// in.
func (b *Batch) allEnded() (context.Context, []pendingNotification) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending.Load() != 0 {
		return nil, nil // more was submitted meanwhile
	}
	b.countEnded()
	messages := b.notify
	b.notify = nil
	if b.failed || len(messages) == 0 {
		return nil, nil
	}
	return b.deliveryContext(), messages
}

// deliveryContext is the context of the delivery of notifications, which an abort cancels. mu is held.
func (b *Batch) deliveryContext() context.Context {
	if b.delivery == nil {
		b.delivery, b.stopDelivery = context.WithCancel(b.engine.ctx)
	}
	return b.delivery
}

// finish makes a task's state final.
func (b *Batch) finish(task *Task) {
	if !task.state.CompareAndSwap(uint32(Waiting), uint32(Completed)) {
		task.state.Store(task.state.Load() &^ lost)
	}
	switch b.pending.Add(-1) {
	case 0:
		b.finishAll()
	case 1:
		if f := b.feed.Load(); f != nil {
			f.wake()
		}
	}
}

// finishAll releases what the batch held for its tasks, and calls the functions that wait for its end.
func (b *Batch) finishAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pending.Load() != 0 {
		return // more was submitted meanwhile
	}
	b.ended = clock.Now()
	unpinAll(b.pins)
	b.pins = nil
	for _, timer := range b.timers {
		timer.Stop()
	}
	b.timers = nil
	if b.delivery != nil {
		b.stopDelivery()
		b.delivery, b.stopDelivery = nil, nil
	}
	for f := range b.waiters {
		(*f)()
	}
	clear(b.waiters)
}

// abort marks every task that has not ended as given up, which the transports then settle. It cancels the delivery of
// notifications.
func (b *Batch) abort(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pending.Load() == 0 {
		return
	}
	for _, s := range b.all() {
		s.abort(cause)
	}
	if f := b.feed.Load(); f != nil {
		f.cancel(cause)
	}
	b.deliveryContext()
	b.stopDelivery()
}
