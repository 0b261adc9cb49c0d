// Package clock is the engine's clock. It counts on when the system's date is set.
package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

var start = time.Now()

// Now is the time since this process started. It stands still while the machine is suspended, and takes some 40 ns. It is
// for all that begins and ends in this process. It is never 0.
func Now() time.Duration { return max(1, time.Since(start)) }

// SinceBoot is the time since the machine started, suspended time included. Ages that engines tell each other are
// differences of it: while one machine is suspended, a process on another one may end and be started again. It takes a
// system call.
func SinceBoot() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return Now()
	}
	return time.Duration(now.Nano())
}
