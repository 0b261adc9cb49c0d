package spin

import (
	"sync/atomic"
	"time"

	"kvferry/core/clock"

	"golang.org/x/sys/unix"
)

// Contention says whether threads of other programs want the processors, too. To spin and to yield is right while the
// processors are idle. While they are contended it is wrong: a thread that yields gets its processor back only after a time
// slice of each other thread, which is milliseconds, where a thread that slept runs as soon as it wakes up.
//
//  1. A yield measures for how long the processor was away. After more than lostTime the processors count as
//     contended for a pause.
//  2. While they do, a yield does nothing, and a Spinner does not spin: its thread sleeps instead.
//  3. After the pause goroutines yield and spin again. If one loses its processor soon, the next pause is twice as long.
//
// Any goroutine may use it. The zero value is ready for use. Nil never holds, and yields without measuring.
type Contention struct {
	until atomic.Int64 // by clock.Now
	pause atomic.Int64 // the length of the pause that ends then
}

// process is that of the threads of this process.
var process Contention

// Process is the contention that all spinning threads of the process share: what one of them finds holds for the others.
func Process() *Contention { return &process }

const (
	// lostTime is longer than a thread of an engine uses a processor before it yields, and shorter than a time slice.
	lostTime = time.Millisecond
	// firstPause is some times as long as a time slice. After maxPause the attempt to yield costs less than a hundredth
	// of the time.
	firstPause = 10 * time.Millisecond
	maxPause   = 640 * time.Millisecond
)

// Holds reports whether the processors count as contended at a time by clock.Now.
func (c *Contention) Holds(now time.Duration) bool { return c != nil && int64(now) < c.until.Load() }

// HoldUntil has the processors count as contended until a time by clock.Now. It is for tests of what is done meanwhile.
func (c *Contention) HoldUntil(at time.Duration) { c.until.Store(int64(at)) }

// Yield gives the processor to another thread that is ready, perhaps to the one that serves an awaited answer. It does
// nothing while the processors count as contended. now is the time by clock.Now. It reports whether it has the processor
// back without a loss of time. The goroutine keeps its place in Go's scheduler, because the call mostly returns at once.
func (c *Contention) Yield(now time.Duration) bool {
	if c.Holds(now) {
		return false
	}
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // always succeeds
	return c.measure(now)
}

// YieldPlace is Yield for a goroutine that has used its processor for long: other goroutines may have its place meanwhile.
func (c *Contention) YieldPlace(now time.Duration) bool {
	if c.Holds(now) {
		return false
	}
	_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // always succeeds
	return c.measure(now)
}

// measure reports whether a yield that began at a time was short. After one that was not it begins a pause.
func (c *Contention) measure(began time.Duration) bool {
	if c == nil {
		return true
	}
	now := clock.Now()
	if now-began < lostTime {
		return true
	}
	c.note(now)
	return false
}

// note begins a pause. It is twice as long as the last one if that one has ended a short while ago. Of several threads that
// lose time at once, the first one begins the pause.
func (c *Contention) note(now time.Duration) {
	until, last := c.until.Load(), c.pause.Load()
	if int64(now) < until {
		return
	}
	pause := int64(firstPause)
	if int64(now) < until+2*last {
		pause = min(2*last, int64(maxPause))
	}
	if c.until.CompareAndSwap(until, int64(now)+pause) {
		c.pause.Store(pause)
	}
}
