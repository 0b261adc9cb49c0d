package hostmem

import (
	"kvferry/core/threads"

	"golang.org/x/sys/unix"
)

// BringIn has the kernel touch a range, in a system call that Go's scheduler knows of, and reports whether code of Go may
// access the range itself, within Guard: see MayTouch. It may wait for a page. It changes no byte. It fails for memory
// that is not mapped or is a driver's, with a kernel older than 5.14, and where the signal handlers are not Go's.
func (c *Copier) BringIn(addr uintptr, length uint64, a Access) bool {
	if c.renewed(); !c.trusted || length == 0 {
		return false
	}
	if !populate(addr, length, a) {
		return false
	}
	c.now.Note(addr, length, a)
	c.Renew() // it may have taken long
	return c.MayTouch(addr, length, a)
}

func populate(addr uintptr, length uint64, a Access) bool {
	threads.Enter()
	defer threads.Leave()
	advice := uintptr(unix.MADV_POPULATE_READ)
	if a == Writing {
		advice = unix.MADV_POPULATE_WRITE
	}
	first := addr &^ (pageSize - 1)
	whole := (addr + uintptr(length) - first + pageSize - 1) &^ (pageSize - 1)
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, first, whole, advice)
	return errno == 0
}
