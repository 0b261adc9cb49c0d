// Package device is the seam between the engine and the memory of devices: which device memory belongs to, and
// asynchronous copies between it and page-locked host memory. A vendor's library stands behind each Runtime.
package device

import (
	"errors"
	"time"
)

// Runtime is one kind of device, behind one vendor's library. Its methods may be called from any goroutine, and leave
// the calling thread's current device and context as they were.
type Runtime interface {
	// Name is what its locations begin with: "npu", of "npu:1".
	Name() string

	// Require opens the vendor's library if it is not open yet. The error says where it was looked for.
	Require() error

	// Locate tells on which device the memory at addr lies; found is false when it lies on none. location is where the
	// owner says that it is ("npu:1", "cpu:0", "*"): it is believed where the library cannot be asked. A library that
	// is not open, and that location does not call for, knows of no memory.
	Locate(addr uintptr, location string) (index int, found bool, err error)

	// Open returns a device. Nothing is made on the device before the first Bind.
	Open(index int) (Device, error)
}

// Ordering is a Runtime that can do something at a place in a stream of the application.
type Ordering interface {
	Runtime

	// Call has f called, once, when everything that is queued in the stream by now has been done; what is queued later
	// waits until f has returned. It does not wait itself. f runs on a thread of the library, and may not call the library
	// on it. Where the device fails before, f is not called. stream is the library's handle, 0 for its default stream, that
	// of the calling thread's current context: Call does not change threads.
	Call(stream uintptr, f func()) error
}

// Device is one device. Except for Bind and Traits, its methods, and those of its streams and events, are called on OS
// threads that are bound to it; from several of them at once they are safe for different streams and events.
type Device interface {
	// Bind makes the device current on the calling OS thread, to which the caller has locked its goroutine. Unbind
	// undoes it, and the thread is not used for anything else before that.
	Bind() error
	Unbind() error

	// Allocate returns device memory, aligned to the Traits' Alignment.
	Allocate(length uint64) (uintptr, error)
	Free(addr uintptr) error

	// AllocatePinned returns page-locked host memory, aligned to the Traits' Alignment.
	AllocatePinned(length uint64) (uintptr, error)
	FreePinned(addr uintptr) error

	// Traits are always the same.
	Traits() Traits

	// NewStream returns a queue of copies.
	NewStream() (Stream, error)

	// NewEvent returns a mark for the progress of a stream.
	NewEvent() (Event, error)
}

// Traits are what there is to know of a device to copy to and from it in its best way.
type Traits struct {
	// Alignment is what both addresses of a copy within the device must be multiples of: a power of two.
	Alignment uintptr

	// Gathers is whether many small blocks cross faster when they are gathered on the device, by copies within it, into one
	// piece, or scattered from one there. Else a batch of them is better, or one copy for each.
	Gathers bool

	// Asks is whether Wait of an event, with no time, tells within microseconds whether it has happened.
	Asks bool
}

// Kind is which way a copy goes.
type Kind int

const (
	HostToDevice Kind = iota
	DeviceToHost
	WithinDevice
)

func (k Kind) String() string {
	return [...]string{"host to device", "device to host", "within the device"}[k]
}

// Copy is one copy. The layout is read by C.
type Copy struct {
	Dst, Src uintptr
	Length   uint64 // bytes
}

// Stream runs copies one after the other, asynchronously. There is no order between two streams.
type Stream interface {
	// Copy queues the copies, in order. The host side of each is page-locked. issued is how many were queued: when
	// there is an error, it is about copies[issued], and the ones after that were not tried.
	Copy(kind Kind, copies []Copy) (issued int, err error)

	// CopyBatch queues the copies in one call, with no order among them. It fails with ErrNoBatches where the library has
	// no such call, or not for this kind or device. After another error, any of them may have been queued.
	CopyBatch(kind Kind, copies []Copy) error

	// Record has the event happen when everything queued so far has been done.
	Record(e Event) error

	// Drain waits, for at most so long, until everything queued has been done; it fails when that failed.
	Drain(timeout time.Duration) error

	// Close gives the stream up. It may wait for what is queued as long as that takes, so Drain comes first. After it has
	// returned without an error no copy of the stream touches memory any more.
	Close() error
}

// Event is recorded in a stream and waited for, again and again. Wait may be called on another thread than Record, after
// it.
type Event interface {
	// Wait sleeps until the event has happened: done is false when that took longer than the timeout. An error means
	// that work before it in its stream failed, or that nothing can be said about it.
	Wait(timeout time.Duration) (done bool, err error)

	Close() error
}

// ErrNoBatches is why CopyBatch is not to be used.
var ErrNoBatches = errors.New("the device's library copies no batches")
