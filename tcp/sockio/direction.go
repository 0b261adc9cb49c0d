package sockio

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// direction is one direction of a socket: its system call, and how a goroutine waits for it.
//
//  1. do makes the system call by way of until and tryStep: once, or until the socket is ready.
//  2. A step that finds the socket not ready sleeps on it for a moment (pollBriefly), and then waits with Go's poller
//     (readiness).
//  3. call makes the system call itself: raw, or announced to Go's scheduler (memory.go). Under TLS secure does that.
type direction struct {
	memoryCalls
	readiness  *readiness
	socket     int // valid while the readiness is held
	processors *Processors
	name       string // of the system call
	number     uintptr
	flags      uintptr
	events     int16 // of poll(2) that make the socket ready

	attempt   func() bool // tryStep, bound when the socket is made: binding allocates
	callReady func() bool // ready, likewise
	step      func() bool // callReady, or the argument of until
	message   unix.Msghdr
	file      int    // descriptor that came, or -1
	control   []byte // room for a file descriptor that comes with the first bytes; nil where none is expected any more
	block     bool
	waited    bool   // with Go's poller
	coded     func() // under TLS, what makes the call instead; nil otherwise
	n         uintptr
	errno     syscall.Errno
	err       error // of TLS, where errno is 0
}

func (d *direction) init(r *readiness, socket int, name string, number, flags uintptr, events int16) {
	d.readiness, d.socket, d.name, d.number, d.flags, d.events, d.file = r, socket, name, number, flags, events, -1
	d.attempt = d.tryStep
	d.callReady = d.ready
}

// do makes the system call, and waits for the socket first where block says so.
func (d *direction) do(v []Vector, block bool) (n int, again bool, err error) {
	d.use(v)
	d.step, d.block = d.callReady, block
	if err := d.wait(); err != nil {
		return 0, false, err
	}
	return d.result()
}

// until calls step at once, and whenever the socket may be ready, until step returns true.
func (d *direction) until(step func() bool) error {
	d.step, d.block = step, true
	return d.wait()
}

// wait returns when a step has succeeded.
func (d *direction) wait() error {
	err := d.readiness.whenReady(d.attempt)
	if d.waited {
		d.waited = false
		d.readiness.endAwait()
		d.wakePoller()
	}
	return err
}

// tryStep takes a step. Where the step finds the socket not ready, it says that it waits, and is called again.
func (d *direction) tryStep() bool {
	for !d.step() {
		if !d.block {
			return true
		}
		if !d.pollBriefly() {
			d.waited = true
			d.readiness.await()
			return false
		}
	}
	return true
}

// ready makes the system call, and reports whether the socket was ready for it.
func (d *direction) ready() bool {
	d.call()
	return d.errno != unix.EAGAIN
}

// result is the outcome of the last system call.
func (d *direction) result() (n int, again bool, err error) {
	d.message.Iov = nil
	switch d.errno {
	case 0:
		if d.err != nil {
			return 0, false, d.err
		}
		d.keepFile()
		return int(d.n), false, nil
	case unix.EAGAIN:
		return 0, true, nil
	}
	return 0, false, os.NewSyscallError(d.name, d.errno)
}

// use sets the vectors of the next call.
func (d *direction) use(v []Vector) {
	d.message.Iov = (*unix.Iovec)(unsafe.Pointer(unsafe.SliceData(v)))
	d.message.SetIovlen(min(len(v), MaxVectors))
}

// begin forgets the outcome of the last call.
func (d *direction) begin() { d.touched, d.n, d.errno, d.err = nil, 0, 0, nil }

// call makes the system call. It never waits for the socket, but it may wait for a page of the application's memory.
func (d *direction) call() {
	if d.coded != nil {
		d.coded()
		return
	}
	d.errno = unix.EINTR
	for d.errno == unix.EINTR {
		if !d.callRaw() {
			d.callAnnounced()
		}
	}
}

// callUnheld is call for a goroutine that must not wait for a page of the call in the other direction: while there is such a call,
// it is as if the socket were not ready. A call of the other direction that begins meanwhile waits for this one, as for a raw
// call.
func (d *direction) callUnheld() {
	if !d.enterRaw() {
		d.begin()
		d.errno = unix.EAGAIN
		return
	}
	defer d.leaveRaw()
	d.call()
}
