package tcp

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

// Go's poller wakes a thread for whatever comes over a socket, whether anybody waits for it or not: where bytes are
// received as they come, or somebody looks for them without a pause, that costs more than to receive them. A bell rings
// only for who waits. It is a set of epoll(7), which holds the socket, and for which Go's poller waits in place of it:
//
//  1. Who would have to wait sets the bell (await), and waits until it rings.
//  2. It stays set for the next time, until there was something to receive, or room, without waiting (spared).
//  3. Who looks for what comes while another one waits, has it still meanwhile (look, looked).
//
// One goroutine at a time waits for a bell. Any may look.
type bell struct {
	socket int
	events uint32 // what it rings for
	file   *os.File
	raw    syscall.RawConn

	mu      sync.Mutex
	ringing bool // it is set
	waiting bool // somebody waits, or is about to
	lookers int
	quiet   func(set uintptr) // still and set, bound when the bell is made: binding allocates
	loud    func(set uintptr)
}

func newBell(socket int, events uint32) (*bell, error) {
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	b := &bell{socket: socket, events: events}
	if err := errors.Join(unix.SetNonblock(set, true), b.control(set, unix.EPOLL_CTL_ADD, 0)); err != nil {
		_ = unix.Close(set)
		return nil, err
	}
	b.file = os.NewFile(uintptr(set), "a bell")
	b.raw, err = b.file.SyscallConn()
	b.quiet, b.loud = b.still, b.set
	return b, err
}

func (b *bell) control(set, operation int, events uint32) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(set, operation, b.socket, &unix.EpollEvent{Events: events}))
}

// whenReady calls attempt until it returns true: at once, and whenever the bell rings, for which attempt has called
// await with what it was given. It ends with an error at the deadline, and when the bell is closed.
func (b *bell) whenReady(attempt func(set uintptr) bool) error {
	return closedError(b.raw.Read(attempt))
}

// hold calls use, during which the bell, and so its socket, is not closed.
func (b *bell) hold(use func(set uintptr)) error { return closedError(b.raw.Control(use)) }

// closedError names the error of what is closed as package net does.
func closedError(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", net.ErrClosed, err)
}

// await sets the bell, on behalf of who waits.
func (b *bell) await(set uintptr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = true
	if b.lookers == 0 {
		b.set(set)
	}
}

// awake is called by who has waited.
func (b *bell) awake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = false
}

// spared is called by who had no need to wait.
func (b *bell) spared(set uintptr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.still(set)
}

func (b *bell) look() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lookers++
	if b.lookers == 1 {
		_ = b.hold(b.quiet) // fails on what is closed
	}
}

func (b *bell) looked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lookers--
	if b.lookers == 0 && b.waiting {
		_ = b.hold(b.loud)
	}
}

// set has the bell ring as soon as there is something to ring for, and at once if there is already. What is left in the
// epoll set of an event from before is taken out first: it would not ring again for the same socket.
func (b *bell) set(set uintptr) {
	if b.ringing {
		return
	}
	b.ringing = true
	var old [1]unix.EpollEvent
	_, _ = unix.EpollWait(int(set), old[:], 0)
	_ = b.control(int(set), unix.EPOLL_CTL_MOD, b.events|unix.EPOLLET)
}

// still has the bell ring for nothing but the end of the connection.
func (b *bell) still(set uintptr) {
	if b.ringing {
		b.ringing = false
		_ = b.control(int(set), unix.EPOLL_CTL_MOD, 0)
	}
}

func (b *bell) setDeadline(t time.Time) error { return b.file.SetReadDeadline(t) }

// close wakes who waits, and returns when nobody holds the bell any more.
func (b *bell) close() error { return b.file.Close() }
