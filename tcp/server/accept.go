package server

import (
	"time"

	"kvferry/core/shut"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"

	"go.uber.org/zap"
)

// How connections come in: accept takes them from a listener, one at most beyond those that can be served. admit starts a
// session for each as soon as there is a slot.
const (
	// The delay after a failed accept, which mostly lacks file descriptors: doubled each time, within these limits.
	minAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay = time.Second
)

// admit starts a session for each connection that is accepted, as many as can be served.
func (v *Server) admit() {
	for v.takeSlot() {
		select {
		case conn := <-v.accepted:
			v.start(conn)
		case <-v.closing:
			return
		}
	}
}

// takeSlot waits until there may be one more session. It returns false when the server is closed.
func (v *Server) takeSlot() bool {
	select {
	case v.slots <- struct{}{}:
		return true
	default:
	}
	v.warnFull.Do(func() {
		v.log.Warn("all sessions are in use; more data connections wait until one ends", zap.Int("limit", cap(v.slots)))
	})
	select {
	case v.slots <- struct{}{}:
		return true
	case <-v.closing:
		return false
	}
}

// accept takes the connections of a listener until the server is closed, whatever fails.
func (v *Server) accept(next func() (sockio.Conn, error)) {
	delay := minAcceptDelay
	for {
		conn, err := next()
		if err == nil {
			delay = minAcceptDelay
			v.failing.Store(false)
			select {
			case v.accepted <- conn:
				continue
			case <-v.closing:
				_ = shut.Abandon(conn)
				return
			}
		}
		if v.isClosed() {
			return
		}
		if v.failing.CompareAndSwap(false, true) {
			v.log.Warn("cannot accept data connections; still trying", zap.Error(err))
		}
		select {
		case <-time.After(delay):
		case <-v.closing:
			return
		}
		delay = min(2*delay, maxAcceptDelay)
	}
}

// acceptLocal takes the next connection of a process on this host. Every process of the network namespace can connect to an
// abstract socket, so those of other users are closed before a byte of them is read.
func (v *Server) acceptLocal() (sockio.Conn, error) {
	for {
		conn, err := v.local.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if err = samehost.RefuseOtherUsers(conn); err == nil {
			return conn, nil
		}
		_ = shut.Abandon(conn)
		v.log.Warn("refused a connection on this host", zap.Error(err))
	}
}
