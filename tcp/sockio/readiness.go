package sockio

import (
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Go's poller wakes a thread for every event of a socket, even when no goroutine waits for it. Where a goroutine receives
// bytes as they come, or spins on the socket, such a wake-up costs more than the receive. So a socket is not registered with
// Go's poller, but is a member of an epoll set (pollset.go), and Go's poller waits for that set:
//
//  1. A goroutine that would have to wait has the set listen for one event of the socket (await), and sleeps until there is one
//     (wake).
//  2. While a goroutine spins on the socket, the set does not listen (beginSpin, endSpin).
//
// One goroutine at a time waits for one readiness. Any goroutine may spin.
type readiness struct {
	events uint32        // that make the socket ready
	member *member       // of the socket, from before the first use to after the last
	signal chan struct{} // has an element when the socket may be ready, the deadline is over, or the readiness is closed

	uses    atomic.Int64 // holders, and closed
	unused  chan struct{}
	expired atomic.Bool // the deadline is over

	mu       sync.Mutex
	waiting  bool // a goroutine waits, or is about to
	spinners int
	deadline time.Time
	timer    *time.Timer // nil before the first deadline in the future
}

// closed is added to the uses when the readiness is closed.
const closed = math.MinInt64

func newReadiness(events uint32) *readiness {
	return &readiness{events: events, signal: make(chan struct{}, 1), unused: make(chan struct{}, 1)}
}

// whenReady calls attempt at once, and again each time that the socket may be ready, until attempt returns true. Before attempt
// returns false it calls await. whenReady fails at the deadline, and when the readiness is closed.
func (r *readiness) whenReady(attempt func() bool) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	for {
		select {
		case <-r.signal: // what it says is seen now
		default:
		}
		if err := r.ended(); err != nil {
			r.wake() // another goroutine that might wait
			return err
		}
		if attempt() {
			return nil
		}
		<-r.signal
	}
}

// ended is why no goroutine waits any more, or nil.
func (r *readiness) ended() error {
	switch {
	case r.uses.Load() < 0:
		return net.ErrClosed
	case r.expired.Load():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// enter keeps the socket open until leave. It fails when the readiness is closed.
func (r *readiness) enter() error {
	if r.uses.Add(1) < 0 {
		r.leave()
		return net.ErrClosed
	}
	return nil
}

func (r *readiness) leave() {
	if r.uses.Add(-1) == closed {
		select {
		case r.unused <- struct{}{}:
		default:
		}
	}
}

// hold calls use. The socket stays open until use has returned.
func (r *readiness) hold(use func()) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	use()
	return nil
}

// wake has the goroutine that waits, or the next one, try again.
func (r *readiness) wake() {
	select {
	case r.signal <- struct{}{}:
	default: // it has been signalled already
	}
}

// await is called by a goroutine that is about to wait.
func (r *readiness) await() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = true
	if r.spinners == 0 {
		r.member.listen(r.events, true)
	}
}

// endAwait is called by the goroutine that has waited.
func (r *readiness) endAwait() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = false
}

func (r *readiness) beginSpin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spinners++
	if r.spinners == 1 && r.enter() == nil {
		r.member.listen(r.events, false)
		r.leave()
	}
}

func (r *readiness) endSpin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spinners--
	if r.spinners == 0 && r.waiting && r.enter() == nil {
		r.member.listen(r.events, true)
		r.leave()
	}
}

// isAwaited reports whether a goroutine waits.
func (r *readiness) isAwaited() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

// setDeadline ends waits at a time, and those that begin later; the zero time ends none.
func (r *readiness) setDeadline(t time.Time) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
	r.deadline = t
	left := time.Until(t)
	switch {
	case t.IsZero():
		r.expired.Store(false)
	case left <= 0:
		r.expired.Store(true)
		r.wake()
	default:
		r.expired.Store(false)
		if r.timer == nil {
			r.timer = time.AfterFunc(left, r.expire)
		} else {
			r.timer.Reset(left)
		}
	}
	return nil
}

// expire is called by the timer, and perhaps once more after the deadline was changed.
func (r *readiness) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.deadline.IsZero() && time.Until(r.deadline) <= 0 {
		r.expired.Store(true)
		r.wake()
	}
}

// close wakes the goroutine that waits, and returns when no goroutine holds the readiness any more. It is called once.
func (r *readiness) close() {
	n := r.uses.Add(closed)
	r.wake()
	for ; n != closed; n = r.uses.Load() {
		<-r.unused
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
}
