package exporter

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"kvferry/core/fair"
	"kvferry/core/shut"
)

const (
	// maxConnections is how many connections a server has open. The addresses of clients share them. Beyond that an older connection
	// gives way to a new one, at first such as have sent no request.
	maxConnections = 16
	// patience is how long the server accepts no connections while those of a burst from one address end.
	patience = 250 * time.Millisecond
	// requestGrace is how long a connection has to send its request before another one of its address, which has not waited, takes
	// its place.
	requestGrace = time.Second
)

// boundedListener accepts connections that have a place.
type boundedListener struct {
	listener
	door   *fair.Door
	closed chan struct{}
	once   sync.Once
}

func bounded(l listener) net.Listener {
	return &boundedListener{
		listener: l, door: fair.NewDoor(fair.Options{Limit: maxConnections, Grace: requestGrace}, patience), closed: make(chan struct{}),
	}
}

func (b *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := b.listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &boundedConn{Conn: conn, door: b.door}
		if c.place, err = b.door.Admit(clientOf(conn), func() { _ = c.shut() }, b.closed); err == nil {
			return c, nil
		}
		_ = c.shut()
	}
}

// clientOf is the address that a connection's place counts for. All that come through a Unix-domain socket have the same.
func clientOf(conn net.Conn) netip.Addr {
	if _, ok := conn.(*net.UnixConn); ok {
		return netip.IPv4Unspecified()
	}
	return fair.AddrOf(conn.RemoteAddr())
}

func (b *boundedListener) Close() error {
	b.once.Do(func() { close(b.closed) })
	if err := b.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// boundedConn gives its place back when it is closed.
type boundedConn struct {
	net.Conn
	door  *fair.Door
	place *fair.Place
}

func (c *boundedConn) Close() error {
	defer c.door.Leave(c.place)
	return c.shut()
}

// shut closes the connection, also for forked children.
func (c *boundedConn) shut() error {
	if conn, ok := c.Conn.(shut.Conn); ok {
		return shut.Close(conn)
	}
	return c.Conn.Close()
}

// connKey is of a request's context, and has its *boundedConn.
type connKey struct{}

// noteRequest says that a connection has sent the header of a request.
func noteRequest(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*boundedConn); ok {
		c.place.SetRank(fair.Spared)
	}
}

// noteState follows a connection between its requests.
func noteState(conn net.Conn, state http.ConnState) {
	if c, ok := conn.(*boundedConn); ok && state == http.StateIdle {
		c.place.SetRank(fair.Idle)
	}
}
