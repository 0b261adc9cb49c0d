package server

import (
	"errors"
	"slices"
	"time"

	"kvferry/core/fair"
	"kvferry/core/shut"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"

	"go.uber.org/zap"
)

// How connections come in:
//
//  1. accept takes them from a listener, whatever fails. acceptLocal closes those of other users of the host.
//  2. admit starts a session for each that gets a place (place.go). A session that has sent no valid request, or is idle, may
//     have to give way.
//  3. Where none gives way the connection waits. When the waiting ones are too many, some of the address that has most of
//     them are reset.
//  4. admitWaiting tries again when a session has ended, and once in a while when some are idle (offerIdle).
const (
	// The delay after a failed accept, which mostly lacks file descriptors: doubled each time, within these limits.
	minAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay = time.Second
	// maxWaiting is how many connections wait for a place. Each takes one descriptor.
	maxWaiting = 64
)

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
		v.counts.foreign.Add(1)
		v.log.Warn("refused a connection on this host", zap.Error(err))
	}
}

// waiter is an accepted connection that has no place.
type waiter struct {
	conn    sockio.Conn
	since   time.Time
	place   *fair.Place // among those that wait
	refused bool        // it has to go, for one of another address
}

// admit starts a session for each accepted connection, until the server is closed.
func (v *Server) admit() {
	var waiting []*waiter
	var again <-chan time.Time
	for {
		select {
		case conn := <-v.accepted:
			if full := v.seat(conn, len(waiting) >= insistFrom); full != nil {
				waiting = v.wait(waiting, conn, full)
			}
		case <-v.placeFree:
			waiting = v.admitWaiting(waiting)
		case <-again:
			idle := v.options.Idle
			if time.Since(waiting[0].since) >= urgentTime {
				idle = 0
			}
			v.offerIdle(idle)
			waiting = v.admitWaiting(waiting)
			again = nil
		case <-v.closing:
			for _, w := range waiting {
				_ = shut.Abandon(w.conn)
			}
			return
		}
		switch {
		case len(waiting) == 0:
			again = nil
		case again == nil:
			again = time.After(offerPause)
		}
	}
}

// wait has a connection wait for a place. full is why it has none.
func (v *Server) wait(waiting []*waiter, conn sockio.Conn, full error) []*waiter {
	v.warnFull(full)
	w := &waiter{conn: conn, since: time.Now()}
	place, err := v.waitingRoom.Enter(fair.AddrOf(conn.RemoteAddr()), 1, func() { w.refused = true })
	if err != nil {
		v.refuse(conn, full)
		return waiting
	}
	w.place = place
	v.someWait.Store(true)
	return v.admitWaiting(append(waiting, w)) // a place may have become free before someWait was set
}

// admitWaiting gives places to the connections that wait, oldest first, and returns those that go on waiting.
func (v *Server) admitWaiting(waiting []*waiter) []*waiter {
	waiting = slices.DeleteFunc(waiting, func(w *waiter) bool {
		if w.refused {
			v.refuse(w.conn, errOvertaken)
			return true
		}
		if v.seat(w.conn, false) == nil {
			w.place.Leave()
			return true
		}
		return false
	})
	v.someWait.Store(len(waiting) > 0)
	return waiting
}

// errOvertaken is why a connection that waits is reset.
var errOvertaken = errors.New("too many wait for a place, most of them from its address")

// refuse resets a connection that can neither be served nor wait.
func (v *Server) refuse(conn sockio.Conn, full error) {
	_ = shut.Abandon(conn)
	v.counts.refused.Add(1)
	v.log.Info("refused a data connection", zap.Stringer("peer", conn.RemoteAddr()), zap.Error(full))
}
