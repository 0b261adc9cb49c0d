package sockio

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"kvferry/core/hostmem"
	"kvferry/core/threads"

	"golang.org/x/sys/unix"
)

// A system call of a socket takes only as long as it copies bytes, unless a page of the application's memory has to be
// brought in first:
//
//  1. callRaw makes a call whose memory was all touched within the last second, and does not announce it to Go's scheduler.
//     For an announced call, the scheduler would take the goroutine's place away in the middle of the copy, and wake a
//     thread for another goroutine while the processor is busy.
//  2. callAnnounced makes any other call. While it waits for a page, the rest of the process and the garbage collector go
//     on. The memory that the call has touched counts as touched from then on.
//  3. The kernel lets one call at a time work on a TCP socket. So while an announced call is under way in one direction, a
//     call in the other direction is announced as well: it may have to wait for the same page. A goroutine that must not wait
//     makes no call then (callUnheld).
type memoryCalls struct {
	access      hostmem.Access // to the application's memory
	ours        Vector         // memory of the library, always in memory; a call may touch less of it than it is given
	other       *memoryCalls   // of the other direction, over TCP
	asking      *atomic.Bool   // see flow; over TCP
	touched     []Vector       // a list whose memory was touched within the last second, if the next call uses it
	inRaw       atomic.Bool    // a raw call is under way, or about to be
	inAnnounced atomic.Bool
}

// MaxRawBytes bounds the memory of a raw call, and with that the time that it takes to check that memory.
const MaxRawBytes = 8 << 20

// callRaw makes the system call if it does not have to wait for memory, and reports whether it did.
func (d *direction) callRaw() bool {
	known := d.vouchedFor()
	d.touched = nil
	if !known && !d.inMemory() || !d.enterRaw() {
		return false
	}
	d.n, _, d.errno = unix.RawSyscall(d.number, uintptr(d.socket), uintptr(unsafe.Pointer(&d.message)), d.flags)
	d.leaveRaw()
	return true
}

// callAnnounced makes the system call, however long it takes.
func (d *direction) callAnnounced() {
	threads.Enter()
	defer threads.Leave()
	d.enterAnnounced()
	d.n, _, d.errno = unix.Syscall(d.number, uintptr(d.socket), uintptr(unsafe.Pointer(&d.message)), d.flags)
	d.inAnnounced.Store(false)
	if d.errno == 0 {
		d.note(uint64(d.n))
	}
}

// vouch says that all memory of a list was touched a moment ago. The next call does not check it again.
func (c *memoryCalls) vouch(v []Vector) { c.touched = v }

func (d *direction) vouchedFor() bool {
	v := d.vectors()
	return len(d.touched) == len(v) && unsafe.SliceData(d.touched) == unsafe.SliceData(v)
}

func (c *memoryCalls) enterRaw() bool {
	if c.other == nil {
		return true
	}
	c.inRaw.Store(true)
	if c.other.inAnnounced.Load() {
		c.inRaw.Store(false)
		return false
	}
	return true
}

func (c *memoryCalls) leaveRaw() {
	if c.other != nil {
		c.inRaw.Store(false)
	}
}

// enterAnnounced waits for a raw call of the other direction, and for Socket.Flow, that have not seen this call. They end soon.
func (c *memoryCalls) enterAnnounced() {
	c.inAnnounced.Store(true)
	for c.other != nil && (c.other.inRaw.Load() || c.asking.Load()) {
		runtime.Gosched()
	}
}

// inMemory reports whether the memory of the next call was touched within the last second.
func (d *direction) inMemory() bool {
	var now hostmem.Time
	var bytes uint64
	for _, v := range d.vectors() {
		if v.Length == 0 || d.ours.Holds(v.Base) {
			continue
		}
		if now == 0 {
			now = hostmem.Now()
		}
		bytes += v.Length
		if bytes > MaxRawBytes || !now.Seen(v.Base, v.Length, d.access) {
			return false
		}
	}
	return true
}

// resident reports whether the kernel has the memory of the next call.
func (d *direction) resident() bool {
	for _, v := range d.vectors() {
		if v.Length > 0 && !d.ours.Holds(v.Base) && !hostmem.Resident(v.Base, v.Length) {
			return false
		}
	}
	return true
}

// note records the memory that a call has touched: its first bytes.
func (d *direction) note(bytes uint64) {
	now := hostmem.Now()
	for _, v := range d.vectors() {
		length := min(v.Length, bytes)
		if length > 0 && !d.ours.Holds(v.Base) {
			now.Note(v.Base, length, d.access)
		}
		bytes -= length
	}
}

func (d *direction) vectors() []Vector {
	return unsafe.Slice((*Vector)(unsafe.Pointer(d.message.Iov)), d.message.Iovlen)
}
