package samehost

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/spin"
)

// CopyLimiter leaves processors to short transfers. A goroutine that copies from another process keeps a processor busy for
// as long as there is something to copy. A thread that wakes up beside it to serve a message of a few microseconds gets its
// turn from the system only after milliseconds. So do goroutines that receive long payloads of many peers. So long copies are
// limited while short transfers are expected:
//
//  1. Note records a transfer. For shortsTime after a short one, more of them are expected.
//  2. While they are expected, Acquire lets so many goroutines copy at once as there are places, and others wait, the longest
//     waiting one first. A copy may be held up by the process that it reads from, or by a page of memory, and must not hold up
//     other copies: where no place was released within acquireTimeout, they go on without one, and so do those that come before
//     one is released.
//
// The engines of a process share one, because they share the processors.
type CopyLimiter struct {
	contention *spin.Contention
	shorts     atomic.Int64 // time of the last short transfer, by clock.Now
	released   atomic.Uint64

	mu      sync.Mutex
	free    int             // places; 0 while somebody waits for one
	waiting []chan struct{} // one for each that waits, closed when it has a place; the longest waiting one is first
	stalled bool            // no place was released within acquireTimeout, nor since
}

const (
	// shortsTime is some hundred times as long as a short transfer on one host takes.
	shortsTime = 10 * time.Millisecond
	// acquireTimeout is some ten times as long as a copy takes that yields the processor now and then.
	acquireTimeout = 100 * time.Millisecond

	// longLength is the number of bytes from which on a copy is long.
	longLength = 32 << 10
)

// NewCopyLimiter makes a limiter with so many places, and at least one. Copies that it limits yield by contention, which may
// be nil.
func NewCopyLimiter(places int, contention *spin.Contention) *CopyLimiter {
	l := &CopyLimiter{contention: contention, free: max(1, places)}
	l.shorts.Store(-int64(shortsTime))
	return l
}

// Note records a transfer of so many bytes, or of none.
func (l *CopyLimiter) Note(bytes uint64) {
	if bytes > 0 && bytes < longLength {
		l.shorts.Store(int64(clock.Now()))
	}
}

// LastShort is when the last short transfer was noted, by clock.Now. It is negative before the first one.
func (l *CopyLimiter) LastShort() time.Duration { return time.Duration(l.shorts.Load()) }

// Acquire reports whether the caller has a place, which it has to release. Without one it may copy all the same.
func (l *CopyLimiter) Acquire() bool {
	if clock.Now()-l.LastShort() >= shortsTime {
		return false
	}
	turn, has := l.queue()
	if turn == nil {
		return has
	}
	seen := l.Released()
	timeout := time.NewTimer(acquireTimeout)
	defer timeout.Stop()
	for {
		select {
		case <-turn:
			return true
		case <-timeout.C:
		}
		if !l.moves(&seen) {
			return l.leave(turn)
		}
		timeout.Reset(acquireTimeout)
	}
}

// queue takes a place if one is free. Otherwise turn is closed when the caller has one; it is nil where the caller is not to wait.
func (l *CopyLimiter) queue() (turn chan struct{}, has bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.free > 0:
		l.free--
		return nil, true
	case l.stalled:
		return nil, false
	}
	turn = make(chan struct{})
	l.waiting = append(l.waiting, turn)
	return turn, false
}

// leave ends the waiting for a place, and reports whether the caller has one all the same.
func (l *CopyLimiter) leave(turn chan struct{}) (has bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.Index(l.waiting, turn)
	if at < 0 {
		return true
	}
	l.waiting = slices.Delete(l.waiting, at, at+1)
	l.stalled = true
	return false
}

// moves reports whether a place was released since the caller has looked last.
func (l *CopyLimiter) moves(seen *uint64) bool {
	before := *seen
	*seen = l.Released()
	return *seen != before
}

// Release gives a place back.
func (l *CopyLimiter) Release() {
	l.released.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stalled = false
	if len(l.waiting) == 0 {
		l.free++
		return
	}
	close(l.waiting[0])
	l.waiting = l.waiting[1:]
}

// Released is how often a place was given back.
func (l *CopyLimiter) Released() uint64 { return l.released.Load() }
