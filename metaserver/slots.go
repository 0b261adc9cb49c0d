package metaserver

import (
	"net"
	"net/http"
	"sync"
	"time"

	"kvferry/core/fair"
	"kvferry/core/shut"

	"go.uber.org/zap"
)

const (
	// patience is how long the server accepts no connections while those of a burst from one address end.
	patience = 250 * time.Millisecond

	// requestGrace is how long a connection has to send its request before another one of its address, which has not waited,
	// takes its place.
	requestGrace = time.Second

	// tallyPeriod is the shortest time between log lines about connections that gave way.
	tallyPeriod = 10 * time.Second
)

// slots is a listener with a limit of open connections, which the addresses of clients share. At the limit an older connection
// gives way to a new one. Closing the listener, or a connection of it, also ends the copies that forked children have.
type slots struct {
	*net.TCPListener
	limit     int
	door      *fair.Door
	log       *zap.Logger
	evicted   fair.Tally
	closed    chan struct{}
	closeOnce sync.Once
}

func newSlots(l *net.TCPListener, limit int, patience time.Duration, log *zap.Logger) *slots {
	return &slots{
		TCPListener: l, limit: limit, log: log,
		door:    fair.NewDoor(fair.Options{Limit: int64(limit), Grace: requestGrace}, patience),
		evicted: fair.Tally{Period: tallyPeriod}, closed: make(chan struct{}),
	}
}

func (s *slots) Accept() (net.Conn, error) {
	for {
		conn, err := s.AcceptTCP()
		if err != nil {
			return nil, err
		}
		c := &slottedConn{Conn: conn, tcp: conn, slots: s}
		if c.place, err = s.door.Admit(fair.AddrOf(conn.RemoteAddr()), c.evict, s.closed); err == nil {
			return c, nil
		}
		shut.Close(conn)
		s.tell("a connection to the metadata server was refused: too many are open", c)
	}
}

// tell warns of a connection that found no place, or lost it.
func (s *slots) tell(message string, c *slottedConn) {
	if count, report := s.evicted.Add(); report {
		s.log.Warn(message, zap.Stringer("client", c.RemoteAddr()), zap.Int("limit", s.limit),
			zap.Int("connections closed since the last such message", count))
	}
}

func (s *slots) Close() error {
	s.closeOnce.Do(func() { close(s.closed) })
	return shut.Listener(s.TCPListener)
}

// open is how many connections are open.
func (s *slots) open() int { return int(s.door.Gate.Held()) }

// scarce reports whether more than half of the slots are taken. Idle connections are then closed.
func (s *slots) scarce() bool { return s.open() >= max(s.limit/2, 1) }

// slottedConn is a connection that has a place.
type slottedConn struct {
	net.Conn // hides the other methods of a TCP connection
	tcp      *net.TCPConn
	slots    *slots
	place    *fair.Place
	secured  *secured // what its TLS handshake had in force; nil without TLS. Only the connection's own goroutine looks at it
}

func (c *slottedConn) Close() error {
	err := shut.Close(c.tcp)
	c.slots.door.Leave(c.place)
	return err
}

// evict closes a connection whose place another one takes.
func (c *slottedConn) evict() {
	shut.Close(c.tcp)
	c.slots.tell("a connection to the metadata server was closed to make room for another", c)
}

// slotted is the connection below a connection of net/http, which may have TLS on it.
func slotted(conn net.Conn) *slottedConn {
	if outer, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = outer.NetConn()
	}
	c, _ := conn.(*slottedConn)
	return c
}

// noteState follows a connection between its requests.
func noteState(conn net.Conn, state http.ConnState) {
	if c := slotted(conn); c != nil && state == http.StateIdle {
		c.place.SetRank(fair.Idle)
	}
}

// connKey is of a request's context, and has its *slottedConn.
type connKey struct{}

// noteRequest says that a connection has sent the header of a request.
func noteRequest(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*slottedConn); ok && c != nil {
		c.place.SetRank(fair.Spared)
	}
}
