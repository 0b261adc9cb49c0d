package cuda

// #include "cuda.h"
import "C"

import (
	"runtime"
	"sync"
	"time"

	"kvferry/core/status"
)

// CUDA's waits have no time limit. Waiting goes this way:
//
//  1. Wait asks for the event for a moment, again and again: most copies end within it;
//  2. then it has the waiter of the stream wait, which is a thread that sleeps in CUDA until the event has happened;
//  3. Wait sleeps until the waiter tells, or its own time is up;
//  4. A waiter whose caller has gone stays where it is. It holds the context, and the event if that is given up meanwhile;
//     when CUDA returns it gives both up, and ends. Until then other waits of the stream wait for it: whatever they are
//     for comes no sooner. So there is at most one such thread for each stream.

// askTime is how long Wait asks before it sleeps: a block is copied within it, and a thread that sleeps in CUDA is awake
// some 50 to 150 us after the event.
const askTime = 250 * time.Microsecond

// event is a mark in a stream.
type event struct {
	gpu    *gpu
	handle C.uintptr_t
	stream *stream // in which it was last recorded, if it was
}

// Wait sleeps until the event has happened, after it has asked for it for a moment.
func (e *event) Wait(timeout time.Duration) (done bool, err error) {
	for start := time.Now(); time.Since(start) < askTime; {
		if done, err = e.happened(); done || err != nil {
			return done, err
		}
	}
	return e.stream.waiter.wait(e, timeout)
}

func (e *event) happened() (bool, error) {
	code := C.kvferry_cuda_query_event(e.gpu.library.cuda, e.handle)
	if code == C.CUDA_NOT_READY {
		return false, nil
	}
	err := e.gpu.failed(code, status.Context, "cuEventQuery()")
	return err == nil, err
}

// Close gives the event up, or has the waiter do so that is not back from it.
func (e *event) Close() error {
	if e.stream != nil && e.stream.waiter.inherits(e) {
		return nil
	}
	return e.destroy()
}

func (e *event) destroy() error {
	code := C.kvferry_cuda_destroy_event(e.gpu.library.cuda, e.handle)
	return e.gpu.failed(code, status.Context, "cuEventDestroy()")
}

// waiter waits for the events of a stream, one at a time, on a thread that is launched when it is first needed.
type waiter struct {
	gpu  *gpu
	turn chan struct{} // holds something while nobody waits; events belongs to who has taken that

	events  chan *event // to the thread; nil where there is none
	results chan error  // from the thread, one for each event that was not left
	ended   chan error  // from the thread, in the end: whether it could be unbound

	mu     sync.Mutex
	left   *event // that the thread waits for, and nobody else any more
	orphan bool   // it is to be given up then
}

func newWaiter(d *gpu) *waiter {
	w := &waiter{gpu: d, turn: make(chan struct{}, 1), results: make(chan error, 1)}
	w.turn <- struct{}{}
	return w
}

// wait sleeps until the event has happened: done is false where that took longer than the timeout.
func (w *waiter) wait(e *event, timeout time.Duration) (done bool, err error) {
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	select {
	case <-w.turn:
	case <-limit.C:
		return false, nil
	}
	if w.events == nil {
		if err := w.launch(); err != nil {
			w.turn <- struct{}{}
			return false, err
		}
	}
	w.events <- e
	select {
	case err = <-w.results:
	case <-limit.C:
		if w.leave(e) {
			return false, nil // the turn is the thread's now
		}
		err = <-w.results
	}
	w.turn <- struct{}{}
	return err == nil, err
}

// launch starts the thread, with the context current on it.
func (w *waiter) launch() error {
	events, ended, bound := make(chan *event), make(chan error, 1), make(chan error)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends
		err := w.gpu.Bind()
		bound <- err
		if err == nil {
			left := w.serve(events)
			ended <- w.gpu.Unbind()
			if left {
				w.turn <- struct{}{}
			}
		}
	}()
	if err := <-bound; err != nil {
		return err
	}
	w.events, w.ended = events, ended
	return nil
}

// serve is the thread's life. left is true where it ends since it was left: it has the turn then.
func (w *waiter) serve(events <-chan *event) (left bool) {
	for e := range events {
		if !w.deliver(e.synchronize()) {
			w.events = nil
			return true
		}
	}
	return false
}

// synchronize waits for the event as long as that takes. Events are made so that this costs no processor time.
func (e *event) synchronize() error {
	code := C.kvferry_cuda_synchronize_event(e.gpu.library.cuda, e.handle)
	return e.gpu.failed(code, status.Context, "cuEventSynchronize()")
}

// deliver hands a result over. Where nobody wants it any more it returns false, and the event is not touched again.
func (w *waiter) deliver(result error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left == nil {
		w.results <- result
		return true
	}
	if w.orphan {
		_ = w.left.destroy() // whom that could be told to has gone
	}
	w.left, w.orphan = nil, false
	return false
}

// leave tells the thread that nobody waits for its result any more, unless it has one.
func (w *waiter) leave(e *event) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.results) > 0 {
		return false
	}
	w.left = e
	return true
}

// inherits has the thread give an event up that it is not back from. It returns false where it is.
func (w *waiter) inherits(e *event) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.orphan = w.orphan || w.left == e
	return w.left == e
}

// close ends the thread. Where the stream may not have come to rest it does not wait for it: a thread that was left ends
// by itself.
func (w *waiter) close(rested bool) error {
	if !rested && len(w.turn) == 0 {
		return nil
	}
	<-w.turn
	if w.events == nil {
		return nil
	}
	close(w.events)
	return <-w.ended
}
