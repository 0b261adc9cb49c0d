package metaserver

import (
	"net"
	"sync"
)

// slots is a listener that has so many connections open at once at most: Accept waits for one to be closed.
type slots struct {
	net.Listener
	taken     chan struct{} // one element per open connection, and one for the next
	closed    chan struct{}
	closeOnce sync.Once
}

func newSlots(l net.Listener, count int) *slots {
	return &slots{Listener: l, taken: make(chan struct{}, count), closed: make(chan struct{})}
}

func (s *slots) Accept() (net.Conn, error) {
	select {
	case s.taken <- struct{}{}:
	case <-s.closed:
		return nil, net.ErrClosed
	}
	conn, err := s.Listener.Accept()
	if err != nil {
		<-s.taken
		return nil, err
	}
	return &slottedConn{Conn: conn, slots: s}, nil
}

func (s *slots) Close() error {
	s.closeOnce.Do(func() { close(s.closed) })
	return s.Listener.Close()
}

// open is how many connections are open.
func (s *slots) open() int { return max(len(s.taken)-1, 0) }

// scarce reports whether so many connections are open that none should be kept without a request.
func (s *slots) scarce() bool { return len(s.taken) > cap(s.taken)/2 }

type slottedConn struct {
	net.Conn
	slots *slots
	once  sync.Once
}

func (c *slottedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.slots.taken })
	return err
}
