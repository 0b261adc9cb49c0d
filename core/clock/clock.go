// Package clock is the engine's clock. It counts on when the system's date is set.
package clock

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

var start = time.Now()

// ahead is how far SinceBoot is ahead of Now, as SinceBoot found it last. It grows while the machine is suspended.
var ahead atomic.Int64

func init() { SinceBoot() }

// Now is the time since this process started. It stands still while the machine is suspended, and takes some 40 ns. It is
// for all that begins and ends in this process. It is never 0.
func Now() time.Duration { return max(1, time.Since(start)) }

// NowAndDate is one moment by this clock and by the system's date, also where the thread is held up meanwhile.
func NowAndDate() (now time.Duration, date time.Time) {
	date = time.Now() // reads both clocks
	return max(1, date.Sub(start)), date
}

// SinceBoot is the time since the machine started, suspended time included. Ages that engines tell each other are
// differences of it: while one machine is suspended, a process on another one may end and be started again. It takes a
// system call.
func SinceBoot() time.Duration {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return Now()
	}
	noteAhead(boot.Nano() - int64(Now())) // Now is read second: the difference is never too large
	return time.Duration(boot.Nano())
}

// Ahead is how far SinceBoot is ahead of Now, as exactly as this process has found it: never by more.
func Ahead() time.Duration {
	SinceBoot()
	return time.Duration(ahead.Load())
}

// AtMostSinceBoot is SinceBoot without its system call, or an earlier time: it leaves out for how long the machine was suspended
// since SinceBoot was called last. It never goes back.
func AtMostSinceBoot() time.Duration {
	_, sinceBoot := NowAndAtMostSinceBoot()
	return sinceBoot
}

// NowAndAtMostSinceBoot is one moment by both clocks.
func NowAndAtMostSinceBoot() (now, sinceBoot time.Duration) {
	by := time.Duration(ahead.Load()) // first: it may grow meanwhile
	now = Now()
	return now, now + by
}

// noteAhead keeps the largest difference, which is the most exact one.
func noteAhead(by int64) {
	for {
		last := ahead.Load()
		if by <= last || ahead.CompareAndSwap(last, by) {
			return
		}
	}
}
