// Package hostmem reads and writes host memory of the application. The application may have unmapped the memory without
// unregistering it, or it may take long until a page is loaded: the page is swapped out, in a file on another machine, or waits for
// a userfaultfd. Either must affect only the transfer that names the memory.
//
//   - A plain load or store keeps a P of Go's scheduler while it waits for a page. The garbage collector waits for every P, and
//     all goroutines wait for the garbage collector. A system call that Go's scheduler does not know of has the same effect.
//   - A plain load or store of unmapped memory raises SIGSEGV or SIGBUS. Go turns that into an error if its own handler gets the
//     signal.
//
// The package copies like this:
//
//  1. Seen finds out whether all pages were in memory within the last second (seen.go).
//  2. If they were, and the signal handlers are Go's (handlers.go), a plain copy is made.
//  3. Otherwise a system call makes the copy, which Go's scheduler knows of, and which returns EFAULT for unmapped memory
//     (syscalls.go). The pages that it has touched count as seen.
//
// Only step 2 relies on Go's signal handlers, for memory that was mapped within the last second and is not now. For less than a
// page a system call takes ten times as long as a plain copy. In a program that replaces the handlers, as Python's faulthandler
// does, step 3 makes all copies.
package hostmem

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"kvferry/core/clock"
)

// Copier copies to and from the application's memory. Its zero value is ready to use. It checks the signal handlers at most once
// between two calls of Renew. It belongs to one goroutine at a time.
type Copier struct {
	fresh   bool // the other fields were set since Renew
	trusted bool // the signal handlers are Go's
	used    bool // something was copied since Prepare
	now     Time
	slow    *slowRuns // scratch of Gather and Scatter
}

// Renew makes the next copy check the time and the signal handlers again. The owner calls it when a new request has come.
func (c *Copier) Renew() { c.fresh = false }

// Prepare checks the signal handlers in advance. A goroutine calls it while it waits for a request that may come within
// microseconds: the request then need not check them. It does nothing if nothing was copied since the last Prepare, since
// the next request will probably copy nothing either.
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
	if c.trusted && c.seen(dst, src, length) {
		return plainCopy(dst, src, length)
	}
	return c.copyAndNote(dst, src, length)
}

// CopyPresent is Copy, if all of the memory was touched a short while ago or is resident: the copy then most likely does not wait.
// Otherwise it returns false, and copies nothing.
func (c *Copier) CopyPresent(dst, src uintptr, length uint64) (copied bool, err error) {
	c.renewed()
	seen := c.seen(dst, src, length)
	switch {
	case seen && c.trusted:
		return true, plainCopy(dst, src, length)
	case seen, c.now.There(src, length, Reading) && c.now.There(dst, length, Writing):
		return true, c.copyAndNote(dst, src, length)
	}
	return false, nil
}

// seen reports whether both sides of a copy were touched a short while ago.
func (c *Copier) seen(dst, src uintptr, length uint64) bool {
	return c.now.Seen(src, length, Reading) && c.now.Seen(dst, length, Writing)
}

func (c *Copier) copyAndNote(dst, src uintptr, length uint64) error {
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

// MayTouch reports whether code of Go may access a range itself, within Guard: all of it was in memory within the last second,
// and a fault is an error.
func (c *Copier) MayTouch(addr uintptr, length uint64, a Access) bool {
	c.renewed()
	return c.trusted && c.now.Seen(addr, length, a)
}

// Guard calls f, which accesses memory that MayTouch allows. A fault in it is an error that wraps EFAULT. Any other panic goes
// on.
func Guard(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		fault := recover()
		if fault == nil {
			return
		}
		if _, ofMemory := fault.(interface{ Addr() uintptr }); !ofMemory {
			panic(fault)
		}
		err = asError(fault)
	}()
	f()
	return nil
}

func (c *Copier) renewed() {
	c.used = true
	if !c.fresh {
		now := clock.Now()
		c.fresh, c.now, c.trusted = true, timeOf(now), handlersAreGos(now, trustTime)
	}
}

// At is the memory of this process from addr on, as a slice. It is for memory outside the Go heap: the collector neither
// keeps nor moves it.
func At(addr uintptr, length uint64) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), length)
}

// plainCopy copies without a system call. A fault that Go's signal handler catches is an error.
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
