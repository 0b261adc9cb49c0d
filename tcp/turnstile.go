package tcp

import (
	"runtime"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
)

// turnstile leaves processors to short transfers. What copies from a neighbour's memory keeps one busy for as long as
// there is something to copy, and the system gives a thread that wakes up beside it, to serve a message of a few
// microseconds, its turn only after milliseconds. So while short transfers are about, what is long has to pass:
//
//  1. note tells of a transfer; for shortsTime after a short one more of them are expected.
//  2. enter lets half as many goroutines copy at once as there are processors, and has others wait; else it lets
//     everybody pass. Nobody waits for longer than patientTime: a copy may be held up by the process it is from, which is
//     to be nobody else's matter.
type turnstile struct {
	places chan struct{}
	shorts atomic.Int64 // when there was a short one last, by clock.Now
}

const (
	// shortsTime is some hundred times as long as a short transfer between neighbours takes.
	shortsTime = 10 * time.Millisecond
	// patientTime is some ten times as long as a copy takes that gives the processor up now and then.
	patientTime = 100 * time.Millisecond
)

var copies = newTurnstile(runtime.GOMAXPROCS(0) / 2)

func newTurnstile(places int) *turnstile {
	t := &turnstile{places: make(chan struct{}, max(1, places))}
	t.shorts.Store(-int64(shortsTime))
	return t
}

// note tells of a transfer of so many bytes, or of none.
func (t *turnstile) note(bytes uint64) {
	if bytes > 0 && bytes < bulkLength {
		t.shorts.Store(int64(clock.Now()))
	}
}

// enter reports whether the caller has a place, and so has to leave.
func (t *turnstile) enter() bool {
	if int64(clock.Now())-t.shorts.Load() >= int64(shortsTime) {
		return false
	}
	select {
	case t.places <- struct{}{}:
		return true
	default:
	}
	patience := time.NewTimer(patientTime)
	defer patience.Stop()
	select {
	case t.places <- struct{}{}:
		return true
	case <-patience.C:
		return false
	}
}

func (t *turnstile) leave() { <-t.places }
