package core

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newEpoch makes the epoch of a registry, in memory that is 0 in a child that is forked: a peer that copies it from a
// process with the same address space, but of another process, is not to find the same number. Where the system has no such
// memory the epoch is 0, and no memory is granted. The memory is given back when the registry is no longer used.
func newEpoch(m *Registry) *atomic.Uint64 {
	page, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return new(atomic.Uint64)
	}
	if err := unix.Madvise(page, unix.MADV_WIPEONFORK); err != nil {
		_ = unix.Munmap(page)
		return new(atomic.Uint64)
	}
	runtime.AddCleanup(m, func(page []byte) { _ = unix.Munmap(page) }, page)
	epoch := (*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(page)))
	epoch.Store(max(1, randomNumber()))
	return epoch
}
