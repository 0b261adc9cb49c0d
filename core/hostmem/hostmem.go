// Package hostmem touches host memory that belongs to the application. Such memory may be gone, since the application has
// unmapped it without a word, or a page of it may take long to come: it is swapped out, lies in a file on another machine,
// or waits for a userfaultfd. Neither may cost more than the transfer that names the memory.
//
//   - A plain load or store holds a place of Go's scheduler while it waits for a page. The garbage collector then waits for
//     that place, and the whole process for the garbage collector. So does a system call that Go's scheduler is not told of.
//   - A plain load or store of memory that is gone raises SIGSEGV or SIGBUS. Go makes an error of it as long as its own
//     handler gets the signal.
//
// The package copies like this:
//
//  1. Seen finds out whether all pages were in memory within the last second (seen.go).
//  2. If they were, and the signal handlers are Go's (handlers.go), a plain copy is made.
//  3. Otherwise a system call makes the copy, of which Go's scheduler is told, and which returns EFAULT for memory that is
//     gone (syscalls.go). The pages that it touched count as seen.
//
// Only step 2 relies on Go's signal handlers: for memory that was there within the last second and is gone now. A copy of
// less than a page takes ten times as long as a system call. A program that replaces the handlers, as Python's
// faulthandler does, has all its copies made by step 3.
package hostmem

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"kvferry/core/clock"
)

// Copier copies to and from the application's memory. Its zero value is ready. It finds out about the signal handlers at
// most once between two calls of Renew. It belongs to one goroutine at a time.
type Copier struct {
	fresh   bool // what follows was found out since Renew
	trusted bool // the signal handlers are Go's
	used    bool // something was copied since Prepare
	now     Time
}

// Renew forgets what was found out. The owner calls it whenever a request has come that may be newer than that.
func (c *Copier) Renew() { c.fresh = false }

// Prepare asks about the signal handlers in advance, so that the answer is new enough for a request that may come within
// microseconds. It does nothing where the last request needed no answer, as the next one will probably need none either.
func (c *Copier) Prepare() {
	if c.used {
		c.used = false
		handlersAreGos(clock.Now(), trustTime/2)
	}
}

// Copy copies length bytes, as memmove does. Where memory cannot be read or written, an error wraps EFAULT, or is a
// runtime.Error, and some of the bytes may have been copied.
func (c *Copier) Copy(dst, src uintptr, length uint64) error {
	c.renewed()
	if c.trusted && c.now.Seen(src, length, Reading) && c.now.Seen(dst, length, Writing) {
		return plainCopy(dst, src, length)
	}
	if err := copyBySyscalls(dst, src, length); err != nil {
		return err
	}
	c.now.Note(src, length, Reading)
	c.now.Note(dst, length, Writing)
	return nil
}

// Fill is Copy from memory of the Go heap.
func (c *Copier) Fill(dst uintptr, from []byte) error {
	length, src := uint64(len(from)), uintptr(unsafe.Pointer(unsafe.SliceData(from)))
	if length == 0 {
		return nil
	}
	c.renewed()
	if c.trusted && c.now.Seen(dst, length, Writing) {
		return plainCopy(dst, src, length)
	}
	err := copyBySyscalls(dst, src, length)
	runtime.KeepAlive(from)
	if err == nil {
		c.now.Note(dst, length, Writing)
	}
	return err
}

func (c *Copier) renewed() {
	c.used = true
	if !c.fresh {
		now := clock.Now()
		c.fresh, c.now, c.trusted = true, timeOf(now), handlersAreGos(now, trustTime)
	}
}

// Readable reports whether every byte of a range is there for the host to read. It does not rely on signal handlers. It
// reads a byte of each page.
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

// At is the memory of this process from addr on, as a slice. It is for memory outside the Go heap: the collector neither
// keeps nor moves it.
func At(addr uintptr, length uint64) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), length)
}

// plainCopy copies without a system call, and returns the fault when Go's signal handler finds memory to be gone.
func plainCopy(dst, src uintptr, length uint64) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			err = asError(fault)
		}
	}()
	copy(At(dst, length), At(src, length))
	return nil
}

func asError(fault any) error {
	if err, ok := fault.(error); ok {
		return fmt.Errorf("%w: %w", syscall.EFAULT, err)
	}
	return fmt.Errorf("%w: %v", syscall.EFAULT, fault)
}
