package fair

import (
	"sync"
	"time"
)

// Tally counts what happens often, and says when to log it: at most once in Period. The zero value logs every time. Its
// methods may be called from any goroutine.
type Tally struct {
	Period time.Duration

	mu    sync.Mutex
	last  time.Time
	count int
}

// Add counts one. It returns true when it is to be logged, with the number since the last one that was.
func (t *Tally) Add() (count int, report bool) { return t.add(time.Now()) }

func (t *Tally) add(now time.Time) (count int, report bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count++
	if !t.last.IsZero() && now.Sub(t.last) < t.Period {
		return 0, false
	}
	count, t.count, t.last = t.count, 0, now
	return count, true
}
