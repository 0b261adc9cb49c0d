// Package spin decides whether a goroutine that expects something within moments spins for it, and when not to, because others need
// the processors.
package spin

import (
	"runtime"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
)

// Spinner decides whether a goroutine spins for something that is expected within moments, before it sleeps. A spin is worth
// it because a wake-up of a thread, and of the processor under it, takes longer than a short message. After spins without
// success it spins ever more rarely, so that it costs next to nothing with a peer that is far away or idle. While the
// processors are contended it does not spin, unless Polling says so. Any goroutine may use it. The zero value is ready for
// use.
type Spinner struct {
	Contention *Contention   // nil where nobody measures it
	Polling    time.Duration // spin this long every time when something short is expected; 0 turns that off

	credit atomic.Int32 // spins that may fail before one is skipped
	skip   atomic.Int32 // spins to skip
	failed atomic.Int32 // spins in a row that have failed without credit
}

const (
	// maxCredit lets a peer that mostly answers at once be late now and then. Without it, both sides would skip spins after
	// one late answer, and be late to each other from then on.
	maxCredit = 16
	// maxBackoff bounds how rarely it spins: at least once in 2^maxBackoff times.
	maxBackoff = 10
	// spinTurn is how long it spins before it lets other goroutines run. A goroutine that is bound to its thread, such as one
	// that was called from C, has to be woken after each turn.
	spinTurn = 200 * time.Microsecond
)

// Spin calls found until found returns true, for at most limit, or not at all. It returns what found returned last.
func (s *Spinner) Spin(limit time.Duration, found func() bool) bool {
	if s.Polling > 0 {
		return Until(s.Polling, nil, found)
	}
	return s.SpinBriefly(limit, found)
}

// SpinBriefly is Spin for something that is not short: it ignores Polling.
func (s *Spinner) SpinBriefly(limit time.Duration, found func() bool) bool {
	if skip := s.skip.Load(); skip > 0 {
		s.skip.Store(skip - 1)
		return false
	}
	if s.Contention.Holds(clock.Now()) {
		return false
	}
	if Until(limit, s.Contention, found) {
		s.failed.Store(0)
		s.credit.Store(min(s.credit.Load()+1, maxCredit))
		return true
	}
	if credit := s.credit.Load(); credit > 0 {
		s.credit.Store(credit - 1)
		return false
	}
	s.skip.Store(1 << min(s.failed.Add(1), maxBackoff))
	return false
}

// Until calls found until found returns true, for at most limit, and at least once. It ends early when it finds the
// processors contended. It returns what found returned last.
func Until(limit time.Duration, contention *Contention, found func() bool) bool {
	start := clock.Now()
	for turn := spinTurn; ; turn += spinTurn {
		turn = min(turn, limit)
		for {
			if found() {
				return true
			}
			now := clock.Now()
			if now-start >= turn {
				break
			}
			if !contention.Yield(now) {
				return found()
			}
		}
		if turn == limit {
			return false
		}
		runtime.Gosched()
	}
}
