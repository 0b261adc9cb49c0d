package trace

import (
	"sync/atomic"
	"time"
)

const (
	// sampleWindow is a time in which so many batches are recorded as the file has. Windows begin at the same dates everywhere, so
	// that an initiator and its target record the same requests.
	sampleWindow = 250 * time.Millisecond
	// turnsPerBatch is how many short answers of a target are recorded in the window, for each of these batches.
	turnsPerBatch = 2
	// shortTurn is up to how many bytes an answer is short. To record a longer one is nothing beside moving its bytes.
	shortTurn = 256 << 10
)

// allowance limits how much is recorded in each window of time. Short batches end by the hundred thousand a second: the file has
// room for few of them, and to record all would slow them down. Nobody reads a clock to find out that the allowance is used up.
type allowance struct {
	used atomic.Bool // up, until the window ends
	most int
	size time.Duration // of a window

	// Under the recorder's lock.
	left int
	ends time.Duration // of the window, by clock.Now
}

// spend uses one of the allowance. now is clock.Now. The recorder's lock is held.
func (a *allowance) spend(now time.Duration) {
	if now >= a.ends {
		a.left, a.ends = a.most, now+a.size-time.Duration(time.Now().UnixNano())%a.size
	}
	a.left--
	if a.left == 0 {
		a.used.Store(true)
		time.AfterFunc(a.ends-now, func() { a.used.Store(false) })
	}
}
