package sockio

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Go's poller wakes a thread for every event of a socket, even when no goroutine waits for it. Where a goroutine receives
// bytes as they come, or spins on the socket, such a wake-up costs more than the receive. So a socket is not registered with
// Go's poller. It is the only member of an epoll set of its own, and Go's poller waits for that set:
//
//  1. A goroutine that would have to wait arms the set (await), and waits until Go's poller finds the set ready.
//  2. The set stays armed for the next wait, until a call succeeds without a wait (noteReady).
//  3. While a goroutine spins on the socket, the set is disarmed (beginSpin, endSpin).
//
// One goroutine at a time waits for one readiness. Any goroutine may spin.
type readiness struct {
	socket int
	events uint32 // that make the socket ready
	file   *os.File
	raw    syscall.RawConn

	mu         sync.Mutex
	armed      bool
	waiting    bool // a goroutine waits, or is about to
	spinners   int
	disarmHeld func(set uintptr) // disarm and arm, bound when the readiness is made: binding allocates
	armHeld    func(set uintptr)
}

func newReadiness(socket int, events uint32) (*readiness, error) {
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	r := &readiness{socket: socket, events: events}
	if err := errors.Join(unix.SetNonblock(set, true), r.control(set, unix.EPOLL_CTL_ADD, 0)); err != nil {
		_ = unix.Close(set)
		return nil, err
	}
	r.file = os.NewFile(uintptr(set), "the readiness of a socket")
	r.raw, err = r.file.SyscallConn()
	r.disarmHeld, r.armHeld = r.disarm, r.arm
	return r, err
}

func (r *readiness) control(set, operation int, events uint32) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(set, operation, r.socket, &unix.EpollEvent{Events: events}))
}

// whenReady calls attempt at once, and again each time that the set is ready, until attempt returns true. Before attempt
// returns false it calls await with its argument. whenReady fails at the deadline, and when the readiness is closed. Read only
// waits for the epoll set; sending uses it, too.
func (r *readiness) whenReady(attempt func(set uintptr) bool) error {
	return closedError(r.raw.Read(attempt))
}

// hold calls use. The set and the socket stay open until use has returned.
func (r *readiness) hold(use func(set uintptr)) error { return closedError(r.raw.Control(use)) }

// closedError makes the error of a closed file the one that package net has.
func closedError(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", net.ErrClosed, err)
}

// await arms the set for the calling goroutine, which is about to wait.
func (r *readiness) await(set uintptr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = true
	if r.spinners == 0 {
		r.arm(set)
	}
}

// endAwait is called by the goroutine that has waited.
func (r *readiness) endAwait() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = false
}

// noteReady is called by a goroutine whose call succeeded without a wait.
func (r *readiness) noteReady(set uintptr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.disarm(set)
}

func (r *readiness) beginSpin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spinners++
	if r.spinners == 1 {
		_ = r.hold(r.disarmHeld) // fails when closed
	}
}

func (r *readiness) endSpin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spinners--
	if r.spinners == 0 && r.waiting {
		_ = r.hold(r.armHeld)
	}
}

// arm makes the set ready as soon as the socket is, at once if it is already. An old event that is left in the set is taken
// out first: with it, the set would not become ready again for the same socket.
func (r *readiness) arm(set uintptr) {
	if r.armed {
		return
	}
	r.armed = true
	var old [1]unix.EpollEvent
	_, _ = unix.EpollWait(int(set), old[:], 0)
	_ = r.control(int(set), unix.EPOLL_CTL_MOD, r.events|unix.EPOLLET)
}

// disarm makes the set ready for nothing but the end of the connection.
func (r *readiness) disarm(set uintptr) {
	if r.armed {
		r.armed = false
		_ = r.control(int(set), unix.EPOLL_CTL_MOD, 0)
	}
}

// isAwaited reports whether a goroutine waits.
func (r *readiness) isAwaited() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

func (r *readiness) setDeadline(t time.Time) error { return r.file.SetReadDeadline(t) }

// close wakes the goroutine that waits, and returns when no goroutine holds the readiness any more.
func (r *readiness) close() error { return r.file.Close() }
