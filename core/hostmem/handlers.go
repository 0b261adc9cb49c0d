package hostmem

import (
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// trustTime is how long an answer about the signal handlers counts. To ask takes a fiftieth of the time of a short request. The
// answer is wrong only if the program replaces its handlers, unmaps registered memory, and a peer writes to that memory, all
// within this time.
const trustTime = 20 * time.Microsecond

var (
	// goHandler is the address of Go's signal handler in this library; 0 before it was found.
	goHandler atomic.Uintptr
	// answer is the last one: when it was asked for, by clock.Now, and in the lowest bit whether the
	// handlers were Go's.
	answer atomic.Int64
	// sigbus is the last answer about SIGBUS: the Time, and in the lowest bit whether the handler was Go's.
	sigbus atomic.Uint64
)

// handlersAreGos reports whether Go gets the signals for memory that cannot be accessed: SIGSEGV for unmapped or protected memory,
// SIGBUS for a file that is shorter than its mapping. If another library has installed a handler instead, the answer is no, even
// if that handler calls Go's. now is by clock.Now. The answer is at most so old.
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

// sigbusIsGos asks once a tick. The answer is wrong only if the program replaces the handler of SIGBUS alone, and shortens a file
// during a transfer, within the same tick.
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

// isGos recognises the handler of Go's runtime by its name: the handler that is installed at the first call may already be another
// library's.
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
