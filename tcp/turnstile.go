package tcp

import (
	"sync/atomic"
	"time"
)

// turnstile leaves processors to short transfers. What copies from a neighbour's memory keeps one busy for as long as
// there is something to copy, and the system gives a thread that wakes up beside it, to serve a message of a few
// microseconds, its turn only after milliseconds. So while short transfers are about, what is long has to pass:
//
//  1. noteShort tells that there was a short one; for shortsTime more of them are expected.
//  2. enter lets half as many goroutines copy at once as there are processors, and has others wait; else it lets
//     everybody pass.
type turnstile struct {
	places chan struct{}
	shorts atomic.Int64 // when there was a short one last, in nanoseconds since began
}

// shortsTime is some hundred times as long as a short transfer between neighbours takes.
const shortsTime = 10 * time.Millisecond

var (
	copies = newTurnstile(processors / 2)
	began  = time.Now()
)

func newTurnstile(places int) *turnstile {
	t := &turnstile{places: make(chan struct{}, max(1, places))}
	t.shorts.Store(-int64(shortsTime))
	return t
}

func (t *turnstile) noteShort() { t.shorts.Store(int64(time.Since(began))) }

// enter reports whether the caller has a place, and so has to leave.
func (t *turnstile) enter() bool {
	if int64(time.Since(began))-t.shorts.Load() >= int64(shortsTime) {
		return false
	}
	t.places <- struct{}{}
	return true
}

func (t *turnstile) leave() { <-t.places }
