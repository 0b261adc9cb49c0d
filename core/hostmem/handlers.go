package hostmem

import (
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// trustTime is how long an answer about the signal handlers counts. To ask takes a fiftieth of the time of a short request,
// and the handlers of a program change once, if at all. They would have to change, registered memory to be unmapped, and a
// peer to write to it, all within this time.
const trustTime = 20 * time.Microsecond

var (
	// goHandler is the address of Go's signal handler in this library, once it was found installed.
	goHandler atomic.Uintptr
	// answer is the last one: when it was asked for, by clock.Now, and in the lowest bit whether the
	// handlers were Go's.
	answer atomic.Int64
	// sigbus is the last answer about SIGBUS: the Time, and in the lowest bit whether the handler was Go's.
	sigbus atomic.Uint64
)

// handlersAreGos reports whether Go gets the signals of memory that is gone: SIGSEGV of what is unmapped or protected,
// SIGBUS of a file that is shorter than its mapping. A handler that another library has put in front of Go's does not
// count, though it may pass on what it gets. now is by clock.Now, and the answer at most so old.
func handlersAreGos(now, old time.Duration) bool {
	last := answer.Load()
	if now-time.Duration(last>>1) > old {
		last = int64(now) << 1
		if isGos(handlerOf(unix.SIGSEGV)) && sigbusIsGos(timeOf(now)) {
			last |= 1
		}
		answer.Store(last)
	}
	return last&1 == 1
}

// sigbusIsGos asks once a tick. A program that takes SIGBUS alone would have to do so, and to shorten a file under a
// transfer, within the same tick.
func sigbusIsGos(now Time) bool {
	last := sigbus.Load()
	if Time(last>>1) != now {
		last = uint64(now) << 1
		if isGos(handlerOf(unix.SIGBUS)) {
			last |= 1
		}
		sigbus.Store(last)
	}
	return last&1 == 1
}

// isGos knows a handler of Go's runtime by its name: what is installed when the library looks for the first time may be
// somebody else's already.
func isGos(handler uintptr) bool {
	switch {
	case handler == 0: // SIG_DFL
		return false
	case handler == goHandler.Load():
		return true
	}
	f := runtime.FuncForPC(handler)
	if f == nil || f.Entry() != handler || !strings.HasPrefix(f.Name(), "runtime.") {
		return false
	}
	goHandler.Store(handler)
	return true
}

// sigaction is the kernel's struct, which begins with the address of the handler.
type sigaction struct{ handler, flags, restorer, mask uintptr }

// handlerOf asks for the handler of a signal; 0 is none. The kernel answers without waiting for anything.
func handlerOf(s unix.Signal) uintptr {
	var now sigaction
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), 0, uintptr(unsafe.Pointer(&now)), unsafe.Sizeof(now.mask), 0, 0)
	if errno != 0 {
		return 0
	}
	return now.handler
}
