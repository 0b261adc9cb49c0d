package tcp

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"kvferry/core/hostmem"
	"kvferry/core/threads"

	"golang.org/x/sys/unix"
)

// A system call of a stream takes as long as it copies bytes, unless a page of the application's memory has to come first:
//
//  1. raw makes the call where all memory was touched within the last second, and does not tell Go's scheduler. The
//     scheduler would take the goroutine's place away amid the copying, and wake a thread for another goroutine while the
//     processor is busy.
//  2. told makes any other call. While that waits for a page, the rest of the process goes on, and so does the garbage
//     collector. What the call has touched counts as touched.
//  3. TCP lets one call at a time work on a socket. So while a call that is told of is under way in one direction, so is
//     that in the other one: it may have to wait for the same page.
type calls struct {
	direction hostmem.Access // of the application's memory
	ours      ioVector       // memory of the library's, of which a call touches less than it is given: always in memory
	other     *calls         // of the other direction, over TCP
	touched   []ioVector     // memory of the next call, if it is of this list, was touched within the last second
	inRaw     atomic.Bool    // a call is under way, or about to be
	inTold    atomic.Bool
}

// mostRaw bounds the memory of a raw call, and with that what it takes to look at it.
const mostRaw = windowBytes

// raw makes the system call if it will not wait for memory.
func (h *half) raw() bool {
	known := h.vouchedFor()
	h.touched = nil
	if !known && !h.inMemory() || !h.enterRaw() {
		return false
	}
	h.n, _, h.errno = unix.RawSyscall(h.number, uintptr(h.bell.socket), uintptr(unsafe.Pointer(&h.message)), h.flags)
	h.leaveRaw()
	return true
}

// told makes the system call, however long it takes.
func (h *half) told() {
	threads.Enter()
	defer threads.Leave()
	h.enterTold()
	h.n, _, h.errno = unix.Syscall(h.number, uintptr(h.bell.socket), uintptr(unsafe.Pointer(&h.message)), h.flags)
	h.inTold.Store(false)
	if h.errno == 0 {
		h.note(uint64(h.n))
	}
}

// vouch tells that all memory of a list was touched a moment ago, so that the call that comes next does not look again.
func (c *calls) vouch(v []ioVector) { c.touched = v }

func (h *half) vouchedFor() bool {
	v := h.vectors()
	return len(h.touched) == len(v) && unsafe.SliceData(h.touched) == unsafe.SliceData(v)
}

func (c *calls) enterRaw() bool {
	if c.other == nil {
		return true
	}
	c.inRaw.Store(true)
	if c.other.inTold.Load() {
		c.inRaw.Store(false)
		return false
	}
	return true
}

func (c *calls) leaveRaw() {
	if c.other != nil {
		c.inRaw.Store(false)
	}
}

// enterTold waits for a raw call of the other direction that has not seen this one. It is over soon.
func (c *calls) enterTold() {
	c.inTold.Store(true)
	for c.other != nil && c.other.inRaw.Load() {
		runtime.Gosched()
	}
}

// inMemory reports whether the memory of the next call was touched within the last second.
func (h *half) inMemory() bool {
	var now hostmem.Time
	var bytes uint64
	for _, v := range h.vectors() {
		if v.length == 0 || h.ours.holds(v.base) {
			continue
		}
		if now == 0 {
			now = hostmem.Now()
		}
		bytes += v.length
		if bytes > mostRaw || !now.Seen(v.base, v.length, h.direction) {
			return false
		}
	}
	return true
}

// resident reports whether the kernel has the memory of the next call.
func (h *half) resident() bool {
	for _, v := range h.vectors() {
		if v.length > 0 && !h.ours.holds(v.base) && !hostmem.Resident(v.base, v.length) {
			return false
		}
	}
	return true
}

// note notes the memory that a call has touched, which is the first bytes of it.
func (h *half) note(bytes uint64) {
	now := hostmem.Now()
	for _, v := range h.vectors() {
		length := min(v.length, bytes)
		if length > 0 && !h.ours.holds(v.base) {
			now.Note(v.base, length, h.direction)
		}
		bytes -= length
	}
}

func (h *half) vectors() []ioVector {
	return unsafe.Slice((*ioVector)(unsafe.Pointer(h.message.Iov)), h.message.Iovlen)
}

// holds reports whether a stretch of memory begins in v.
func (v *ioVector) holds(base uintptr) bool { return uint64(base-v.base) < v.length }
