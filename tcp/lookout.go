package tcp

import (
	"runtime"
	"sync/atomic"
	"time"
)

// lookout looks for something that is expected within moments, instead of sleeping until it has come: to wake a thread,
// and the processor under it, takes longer than a short message. Where it looks in vain it does so ever more rarely, so
// that it costs next to nothing with a peer that is far away or has nothing to say. Any goroutine may use it.
type lookout struct {
	polling time.Duration // look for so long every time; 0 is off

	pause  atomic.Int32 // times to leave out
	missed atomic.Int32 // times in vain in a row
}

// look calls found until it reports true, for at most that long, or not at all; it reports what found did.
func (l *lookout) look(most time.Duration, found func() bool) bool {
	if l.polling > 0 {
		return poll(l.polling, found)
	}
	if l.pause.Add(-1) >= 0 {
		return false
	}
	if poll(most, found) {
		l.missed.Store(0)
		return true
	}
	const rarest = 10 // once in 2^rarest times
	l.pause.Store(1 << min(l.missed.Add(1), rarest))
	return false
}

// poll lets other goroutines have their turns.
func poll(most time.Duration, found func() bool) bool {
	for start := time.Now(); time.Since(start) < most; runtime.Gosched() {
		if found() {
			return true
		}
	}
	return false
}
