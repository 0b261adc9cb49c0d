package metaserver

import (
	"net"
	"sync"

	"kvferry/core/shut"
)

// slots is a listener with a limit of open connections: at the limit, Accept waits until one is closed. Closing it, or a
// connection of it, also ends the copies that forked children have.
type slots struct {
	*net.TCPListener
	taken     chan struct{} // one element per open connection, and one for the next
	closed    chan struct{}
	closeOnce sync.Once
}

func newSlots(l *net.TCPListener, count int) *slots {
	return &slots{TCPListener: l, taken: make(chan struct{}, count), closed: make(chan struct{})}
}

func (s *slots) Accept() (net.Conn, error) {
	select {
	case s.taken <- struct{}{}:
	case <-s.closed:
		return nil, net.ErrClosed
	}
	conn, err := s.AcceptTCP()
	if err != nil {
		<-s.taken
		return nil, err
	}
	return &slottedConn{Conn: conn, tcp: conn, slots: s}, nil
}

func (s *slots) Close() error {
	s.closeOnce.Do(func() { close(s.closed) })
	return shut.Listener(s.TCPListener)
}

// open is how many connections are open.
func (s *slots) open() int { return max(len(s.taken)-1, 0) }

// scarce reports whether more than half of the slots are taken. Idle connections are then closed.
func (s *slots) scarce() bool { return len(s.taken) > cap(s.taken)/2 }

type slottedConn struct {
	net.Conn // hides the other methods of a TCP connection
	tcp      *net.TCPConn
	slots    *slots
	once     sync.Once
}

func (c *slottedConn) Close() error {
	err := shut.Close(c.tcp)
	c.once.Do(func() { <-c.slots.taken })
	return err
}
