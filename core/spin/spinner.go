// Package spin decides whether a goroutine that expects something within moments spins for it, and when not to, because others need
// the processors.
package spin

import (
	"runtime"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
)

// Spinner decides how a goroutine waits for something that is expected within moments, before it leaves the wait to Go's poller:
//
//   - Processors that nobody else wants: it spins. A wake-up of a thread, and of the processor under it, takes longer than a
//     short message.
//   - Contended processors: its own thread sleeps in the kernel until the socket is ready (Sleep). The kernel then runs that
//     thread at once, in place of the one that has sent the message. Go's poller would wake one thread more for each message,
//     and each thread that is woken may have to wait for a time slice of another program.
//   - Polling is set: it spins, also on contended processors.
//
// After waits without success it waits ever more rarely, so that it costs next to nothing with a peer that is far away or idle.
// Any goroutine may use it. The zero value is ready for use.
type Spinner struct {
	Contention *Contention   // nil where nobody measures it
	Polling    time.Duration // spin this long every time when something short is expected; 0 turns that off

	spins, sleeps backoff
}

// Sleep has the calling thread sleep until what is expected may be there, for at most a time. It returns false, without
// having slept, where the thread may not sleep.
type Sleep func(most time.Duration) bool

// backoff says which attempts to skip of those that mostly fail.
type backoff struct {
	credit atomic.Int32 // attempts that may fail before one is skipped
	skip   atomic.Int32 // attempts to skip
	failed atomic.Int32 // attempts in a row that have failed without credit
}

const (
	// maxCredit lets a peer that mostly answers at once be late now and then. Without it, both sides would skip spins after
	// one late answer, and be late to each other from then on.
	maxCredit = 16
	// maxBackoff bounds how rarely it waits: at least once in 2^maxBackoff times.
	maxBackoff = 10
	// spinTurn is how long it spins before it lets other goroutines run. A goroutine that is bound to its thread, such as one
	// that was called from C, has to be woken after each turn.
	spinTurn = 200 * time.Microsecond
	// sleepTime is how long a thread sleeps on contended processors: some times as long as the peer's threads may have to wait
	// for a processor. sleepStep is after how long it looks whether it still has to.
	sleepTime = 20 * time.Millisecond
	sleepStep = 5 * time.Millisecond
)

// Spin calls found until found returns true, for at most limit, or not at all. On contended processors it sleeps between the
// calls, for at most sleepTime in all. It returns what found returned last.
func (s *Spinner) Spin(limit time.Duration, found func() bool, sleep Sleep) bool {
	if s.Polling > 0 {
		return Until(s.Polling, nil, found)
	}
	if s.SpinBriefly(limit, found) {
		return true
	}
	if !s.Contention.Holds(clock.Now()) || s.sleeps.skips() {
		return false
	}
	return s.sleeps.note(asleep(found, sleep))
}

// SpinBriefly is Spin for something that is not short, or not worth a thread: it neither sleeps nor observes Polling.
func (s *Spinner) SpinBriefly(limit time.Duration, found func() bool) bool {
	if s.spins.skips() || s.Contention.Holds(clock.Now()) {
		return false
	}
	return s.spins.note(Until(limit, s.Contention, found))
}

// asleep calls found until found returns true, and sleeps between the calls.
func asleep(found func() bool, sleep Sleep) bool {
	start := clock.Now()
	for !found() {
		left := sleepTime - (clock.Now() - start)
		if left <= 0 || !sleep(min(left, sleepStep)) {
			return false
		}
	}
	return true
}

// skips reports whether to skip an attempt, and counts it.
func (b *backoff) skips() bool {
	skip := b.skip.Load()
	if skip == 0 {
		return false
	}
	b.skip.Store(skip - 1)
	return true
}

// note counts an attempt, and returns whether it was successful.
func (b *backoff) note(success bool) bool {
	credit := b.credit.Load()
	switch {
	case success:
		b.failed.Store(0)
		b.credit.Store(min(credit+1, maxCredit))
	case credit > 0:
		b.credit.Store(credit - 1)
	default:
		b.skip.Store(1 << min(b.failed.Add(1), maxBackoff))
	}
	return success
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
