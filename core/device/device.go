// Package device is the interface between the engine and devices: it finds the device of an address, and makes asynchronous copies
// between device memory and page-locked host memory. Each Runtime uses the library of one vendor.
package device

import (
	"errors"
	"time"
)

// Runtime is one kind of device, behind one vendor's library. Its methods may be called from any goroutine, and leave
// the calling thread's current device and context as they were.
type Runtime interface {
	// Name is the first part of its locations: "npu" of "npu:1".
	Name() string

	// Require opens the vendor's library if it is not open yet. The error says where it was looked for.
	Require() error

	// Locate finds the device of the memory at addr; found is false if it is not on a device of this runtime. location is where
	// the owner says that it is ("npu:1", "cpu:0", "*"). It counts if the library cannot be asked. A library is opened only for
	// a location of its devices; until then found is false.
	Locate(addr uintptr, location string) (index int, found bool, err error)

	// Open returns a device. Nothing is allocated on the device before the first Bind.
	Open(index int) (Device, error)
}

// Ordering is a Runtime that can call a function in the order of a stream of the application.
type Ordering interface {
	Runtime

	// Call queues a call of f in a stream: f is called once when all work that is in the stream now is done, and work that is
	// queued later waits until f has returned. Call does not wait. f runs on a thread of the library, and must not call the
	// library. If the device fails before, f is not called. stream is the library's handle, 0 for the default stream of the
	// calling thread's current context: Call uses the calling thread.
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

// Traits say how copies to and from a device are made fastest.
type Traits struct {
	// Alignment is a power of two. Both addresses of a copy within the device must be multiples of it, unless AnyAddress is true:
	// then those are only copied faster.
	Alignment  uintptr
	AnyAddress bool

	// Ways are those in which the device may be able to copy many blocks. Single is always one of them. A way may turn out to be
	// missing when it is first used: ErrNoBatches, ErrNoKernel.
	Ways Ways
	// Default is the way that suits most devices of this kind: it is used where nothing was measured.
	Default Way
	// Within are the ways of copies from memory of the device to memory of the device, beside Single.
	Within Ways

	// Asks is whether Event.Wait with a timeout of 0 takes only microseconds.
	Asks bool
}

// Quiet is a Device whose library waits for streams of the application when memory is freed, and lets no copy be queued meanwhile. A
// stream may wait for a transfer, of any engine of the process, and the transfer for its copies.
type Quiet interface {
	Device

	// AwaitCalls returns when no stream has a function of Ordering.Call that has not returned, when the limit is over, or when the
	// device has failed.
	AwaitCalls(limit time.Duration)
}

// Kind is the direction of a copy.
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
	// Copy queues the copies, in order. The host side of each is page-locked. issued is how many were queued. An error is about
	// copies[issued]; the copies after it were not tried.
	Copy(kind Kind, copies []Copy) (issued int, err error)

	// CopyBatch queues the copies in one call, in no order. It fails with ErrNoBatches if the library has no such call for this
	// kind and device. After another error, any of them may have been queued.
	CopyBatch(kind Kind, copies []Copy) error

	// Record queues an event: it happens when all work that was queued before is done.
	Record(e Event) error

	// Drain waits, for at most so long, until all queued work is done. It fails if the work has failed, or the time is over.
	Drain(timeout time.Duration) error

	// Close closes the stream. It may wait without a limit for queued work, so Drain is called first. After it has returned
	// without an error, no copy of the stream touches memory any more.
	Close() error
}

// KernelStream is a stream of a device that has the way Kernel.
type KernelStream interface {
	Stream
	// CopyKernel queues a kernel that makes the copies, in no order. It fails with ErrNoKernel if the device cannot run it, and
	// with ErrOutOfReach for these copies alone. After another error, any of them may have been queued.
	CopyKernel(kind Kind, copies []Copy) error
}

// Peered is a Device that may have access to the memory of others, and whose streams are PeerStreams.
type Peered interface {
	Device
	// MayAccess reports whether PeerStream.CopyFrom is worth a try for another device: it is of the same runtime, and the library
	// has the functions. It does not ask the device.
	MayAccess(other Device) bool
}

// PeerStream is a stream of a device that copies from memory of another device of its runtime, past the host.
type PeerStream interface {
	Stream
	// CopyFrom is Copy from memory of the peer to memory of the stream's device. The first call enables the access, which may take
	// milliseconds, and lasts as long as the context; a list without copies does only that. It fails with ErrNoPeer if the device
	// has no access to the peer's memory, or refuses a copy, and with ErrOutOfReach for these copies alone.
	CopyFrom(peer Device, copies []Copy) (issued int, err error)
}

// Rows are blocks of one length, at one distance from each other on each side.
type Rows struct {
	Dst, Src           uintptr // of the first block
	DstPitch, SrcPitch uint64  // bytes from one block to the next, not less than Length
	Length             uint64  // bytes of a block
	Count              uint64  // blocks
}

// MatrixStream is a stream of a device that has the way Matrix.
type MatrixStream interface {
	Stream
	// CopyMatrix queues the copies of rows between host and device in one call, in no order. It fails with ErrNoMatrix if the
	// device has no such call.
	CopyMatrix(kind Kind, rows Rows) error
}

// Event is recorded in a stream and waited for, any number of times. Wait is called after Record, perhaps on another thread.
type Event interface {
	// Wait sleeps until the event has happened. done is false when that takes longer than the timeout. An error means that work
	// before it in its stream has failed, or that its state is not known.
	Wait(timeout time.Duration) (done bool, err error)

	Close() error
}

// ErrNoBatches is the error of CopyBatch where it is not supported.
var ErrNoBatches = errors.New("the device's library copies no batches")

// ErrNoKernel is the error of CopyKernel where the device does not run the kernel.
var ErrNoKernel = errors.New("the device does not run the copying kernel")

// ErrOutOfReach is the error of CopyKernel for memory that copies of the driver may reach, but no kernel, and of CopyFrom for
// memory that the access to a peer does not open.
var ErrOutOfReach = errors.New("the memory is out of reach")

// ErrNoPeer is the error of CopyFrom where the device has no access to the other one's memory.
var ErrNoPeer = errors.New("the device has no access to the memory of the other")

// ErrNoMatrix is the error of CopyMatrix where it is not supported.
var ErrNoMatrix = errors.New("the device's library copies no matrices")
