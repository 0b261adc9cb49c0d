package hostmem

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

var pageSize = uintptr(os.Getpagesize())

// Resident reports whether the kernel has every page of a range in memory now, by mincore(2). It takes a fraction of a
// microsecond, and some nanoseconds for each page. The answer is a hint: a page may be swapped out at any time, and the kernel
// always says yes for files that the process may not write to.
func Resident(addr uintptr, length uint64) bool {
	const most = 256 // pages in one call
	var pages [most]byte
	first := addr &^ (pageSize - 1)
	left := (uint64(addr-first) + length + uint64(pageSize) - 1) / uint64(pageSize)
	for left > 0 {
		n := min(left, most)
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, first, uintptr(n)*pageSize, uintptr(unsafe.Pointer(&pages)))
		if errno != 0 {
			return false
		}
		for _, page := range pages[:n] {
			if page&1 == 0 {
				return false
			}
		}
		first += uintptr(n) * pageSize
		left -= n
	}
	return true
}

// There reports whether a range was touched a short while ago, or is resident. An access then most likely does not wait.
func (now Time) There(addr uintptr, length uint64, a Access) bool {
	return now.Seen(addr, length, a) || Resident(addr, length)
}
