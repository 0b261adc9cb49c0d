package tcp

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// lookout looks for something that is expected within moments, instead of sleeping until it has come: to wake a thread,
// and the processor under it, takes longer than a short message. Where it looks in vain it does so ever more rarely, so
// that it costs next to nothing with a peer that is far away or has nothing to say. Any goroutine may use it.
type lookout struct {
	polling time.Duration // look for so long every time for what is short; 0 is off

	credit atomic.Int32 // times that may be in vain
	pause  atomic.Int32 // times to leave out
	missed atomic.Int32 // times in vain in a row since there was no credit
}

const (
	// mostCredit lets a peer that mostly answers at once be late now and then: if both sides left out to look for a while
	// then, they would be late to each other all the time.
	mostCredit = 16
	// rarest is how rarely it looks at least: once in 2^rarest times.
	rarest = 10
	// lookTurn is how long it looks without letting other goroutines have their turns. A goroutine that is bound to its
	// thread, as one that was called from C, would have to be woken after each turn.
	lookTurn = 200 * time.Microsecond
)

// look calls found until it reports true, for at most that long, or not at all; it reports what found did.
func (l *lookout) look(most time.Duration, found func() bool) bool {
	if l.polling > 0 {
		return poll(l.polling, found)
	}
	return l.lookForAMoment(most, found)
}

// lookForAMoment is look for what is not short, polling or not.
func (l *lookout) lookForAMoment(most time.Duration, found func() bool) bool {
	if pause := l.pause.Load(); pause > 0 {
		l.pause.Store(pause - 1)
		return false
	}
	if poll(most, found) {
		l.missed.Store(0)
		l.credit.Store(min(l.credit.Load()+1, mostCredit))
		return true
	}
	if credit := l.credit.Load(); credit > 0 {
		l.credit.Store(credit - 1)
		return false
	}
	l.pause.Store(1 << min(l.missed.Add(1), rarest))
	return false
}

// poll calls found until it reports true, for at most that long, but once in any case.
func poll(most time.Duration, found func() bool) bool {
	start := time.Now()
	for turn := lookTurn; ; turn += lookTurn {
		turn = min(turn, most)
		for {
			if found() {
				return true
			}
			if time.Since(start) >= turn {
				break
			}
			letOthers()
		}
		if turn == most {
			return false
		}
		runtime.Gosched()
	}
}

// letOthers gives the processor up to a thread that is ready: maybe one that has to serve what is looked for. The goroutine
// keeps its place, since it is to be back at once.
func letOthers() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) } // always succeeds
