package hostmem

import (
	"sync/atomic"
	"time"
	"unsafe"

	"kvferry/core/threads"

	"golang.org/x/sys/unix"
)

// Readable reports whether the host can read every byte of a range. It reads a byte of each page, by system calls.
func Readable(addr uintptr, length uint64) bool {
	const most = 512 // pages in one system call
	for length > 0 {
		var bytes [most]vector
		n := 0
		for ; n < most && length > 0; n++ {
			bytes[n] = vector{addr, 1}
			step := min(uint64(pageSize-addr%pageSize), length)
			addr += uintptr(step)
			length -= step
		}
		if !readableAll(bytes[:n]) {
			return false
		}
	}
	return true
}

// mostUnanswered bounds the bytes that IsHosts has not been able to read yet. Each of them may keep a thread.
const mostUnanswered = 16

var unanswered atomic.Int64

// IsHosts reports whether the host can read a byte, and takes about so long at most. Where the host must not read, nothing is
// waited for. So a byte whose page does not come in time is the host's. The kernel goes on waiting for that page, and keeps nothing
// of it.
func IsHosts(addr uintptr, limit time.Duration) bool {
	if unanswered.Add(1) > mostUnanswered {
		unanswered.Add(-1)
		return isMapped(addr)
	}
	answer := make(chan bool, 1)
	go func() {
		answer <- Readable(addr, 1)
		unanswered.Add(-1)
	}()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case readable := <-answer:
		return readable
	case <-late.C:
		return isMapped(addr)
	}
}

// isMapped reports whether something is mapped where a byte is.
func isMapped(addr uintptr) bool {
	var page [1]byte
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, addr&^(pageSize-1), pageSize, uintptr(unsafe.Pointer(&page)))
	return errno == 0
}

// readable is memory that readableAll reads into. It is not on a stack, which may move.
var readable [512]byte

// readableAll reports whether all of so many single bytes can be read, at most 512.
func readableAll(bytes []vector) bool {
	if !forbidden.Load() && readableAtOnce(bytes) {
		return true
	}
	for _, b := range bytes {
		if copyBySyscalls(uintptr(unsafe.Pointer(&readable)), b.base, 1) != nil {
			return false
		}
	}
	return true
}

func readableAtOnce(bytes []vector) bool {
	threads.Enter()
	defer threads.Leave()
	to := vector{uintptr(unsafe.Pointer(&readable)), uint64(len(bytes))}
	n, _, errno := unix.Syscall6(unix.SYS_PROCESS_VM_READV, uintptr(unix.Getpid()),
		uintptr(unsafe.Pointer(&to)), 1, uintptr(unsafe.Pointer(unsafe.SliceData(bytes))), uintptr(len(bytes)), 0)
	if errno == unix.EPERM || errno == unix.ENOSYS {
		forbidden.Store(true)
	}
	return errno == 0 && int(n) == len(bytes)
}
