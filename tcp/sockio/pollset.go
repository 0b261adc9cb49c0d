package sockio

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pollset is the epoll set that all sockets of a process share, so that a socket takes one descriptor and not one more for each
// wait. It exists while there are sockets. The zero value has none.
//
//  1. join makes a socket a member, for no events. Its readinesses say later which ones they wait for (listen), each time.
//  2. Go's poller finds the set ready, and wakes the goroutine of the set. That takes all events and wakes the goroutines
//     that wait for them (deliver). The kernel reports no other event of that socket until somebody listens again.
//  3. leave takes the socket out. Whoever leaves last closes the set and so ends its goroutine.
type pollset struct {
	mu  sync.Mutex
	set *set // nil while there are no members
}

// set is the epoll set from the first member to the last.
type set struct {
	fd     int // valid until the last member has left
	file   *os.File
	events [128]unix.EpollEvent

	mu      sync.Mutex
	members map[uint64]*member
	last    uint64 // the number of the newest member
}

// member is one socket in the set.
type member struct {
	of      *pollset
	set     *set
	socket  int
	number  uint64 // the kernel gives it back with an event. No other member of the set ever has it
	in, out *readiness

	mu      sync.Mutex    // held by who changes the events
	awaited atomic.Uint32 // events that the kernel is to report
}

func newSet() (*set, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	return setOf(fd)
}

// setOf makes a set of an epoll descriptor, which is the set's from then on.
func setOf(fd int) (*set, error) {
	if err := unix.SetNonblock(fd, true); err != nil { // os.NewFile gives only such files to Go's poller
		return nil, errors.Join(err, unix.Close(fd))
	}
	s := &set{fd: fd, file: os.NewFile(uintptr(fd), "the readiness of sockets"), members: map[uint64]*member{}}
	if err := s.file.SetReadDeadline(time.Time{}); err != nil { // the poller has not taken it, and nobody would be woken
		err = fmt.Errorf("the sockets of the process cannot be waited for (fs.epoll.max_user_watches?): %w", err)
		return nil, errors.Join(err, s.file.Close())
	}
	raw, err := s.file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	go func() { _ = raw.Read(s.deliver) }() // ends when the file is closed
	return s, nil
}

// join makes a socket a member. The caller keeps the socket open until it has left.
func (p *pollset) join(socket int, in, out *readiness) (*member, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.set == nil {
		made, err := newSet()
		if err != nil {
			return nil, err
		}
		p.set = made
	}
	s := p.set
	s.mu.Lock()
	s.last++
	m := &member{of: p, set: s, socket: socket, number: s.last, in: in, out: out}
	s.members[m.number] = m
	s.mu.Unlock()
	if err := m.control(unix.EPOLL_CTL_ADD); err != nil {
		return nil, errors.Join(err, p.remove(m))
	}
	return m, nil
}

// leave takes a socket out of the set. Nobody calls listen any more. A forked child may have the socket, too, so that closing it
// would not take it out.
func (m *member) leave() error {
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	return errors.Join(m.control(unix.EPOLL_CTL_DEL), m.of.remove(m))
}

// remove forgets a member, and closes the set with the last one. The lock is held.
func (p *pollset) remove(m *member) error {
	s := m.set
	s.mu.Lock()
	delete(s.members, m.number)
	left := len(s.members)
	s.mu.Unlock()
	if left > 0 {
		return nil
	}
	p.set = nil
	return s.file.Close()
}

// listen has the next one of some events reported, or none. What is the case already counts as an event.
func (m *member) listen(events uint32, on bool) {
	if m.listens(events) == on {
		return // or is about to be told of an event, and asks again then
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if on {
		m.awaited.Or(events)
	} else {
		m.awaited.And(^events)
	}
	_ = m.control(unix.EPOLL_CTL_MOD) // fails only for what is no member
}

// listens reports whether the next one of some events is going to be reported.
func (m *member) listens(events uint32) bool { return m.awaited.Load()&events != 0 }

// note passes on what the kernel has reported. Where the other direction waits for something else, that is still to come.
func (m *member) note(events uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range []*readiness{m.in, m.out} {
		if events&(r.events|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			m.awaited.And(^r.events)
			r.wake()
		}
	}
	if m.awaited.Load() != 0 {
		_ = m.control(unix.EPOLL_CTL_MOD)
	}
}

// control tells the kernel for which events the socket is in the set. The kernel reports the end of a connection even where
// nobody waits, but once only.
func (m *member) control(operation int) error {
	e := unix.EpollEvent{Events: m.awaited.Load() | unix.EPOLLONESHOT, Fd: int32(m.number), Pad: int32(m.number >> 32)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(m.set.fd, operation, m.socket, &e))
}

// deliver wakes the goroutines for whose sockets there are events. It returns false when there are no more.
func (s *set) deliver(fd uintptr) bool {
	for {
		n, err := unix.EpollWait(int(fd), s.events[:], 0)
		if err == unix.EINTR {
			continue
		}
		s.mu.Lock()
		for _, e := range s.events[:max(n, 0)] {
			if m := s.members[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]; m != nil {
				m.note(e.Events)
			}
		}
		s.mu.Unlock()
		if n < len(s.events) {
			return false
		}
	}
}
