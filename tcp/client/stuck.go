package client

import "errors"

// stuck is a connection that a system call keeps in use, and the local memory that the call may still touch.
type stuck struct {
	fence   *fence
	peer    former
	conn    *connection
	end     *connectionEnd // of the WRITEs that were in flight; nil for none
	release func()         // lets the memory be taken back
}

// errStillUsed is why the memory of a transfer that has failed must not be used for something else.
var errStillUsed = errors.New("a system call that was given up may still touch the local memory until the page arrives that it waits for")

// holdStuck holds the local memory of pieces until the system call has returned.
func (f *fence) holdStuck(p former, conn *connection, held []piece) *stuck {
	return &stuck{fence: f, peer: p, conn: conn, release: f.hold(held, errStillUsed.Error())}
}

// holdStuck: see source.
func (p *peer) holdStuck(conn *connection, held []piece) *stuck {
	return p.fence.holdStuck(p, conn, held)
}

// withdraw keeps the WRITEs that were in flight from overwriting later ones. The connection itself is still in use.
func (s *stuck) withdraw(unanswered []piece) {
	if s.conn.permit != nil {
		s.conn.permit.Revoke(revokeTimeout, func() bool { return !s.conn.process.Lives() })
	}
	if len(unanswered) == 0 {
		return
	}
	s.end = s.fence.quarantine(s.conn, unanswered)
	if s.conn.number != 0 {
		s.fence.running.Go(func() { s.fence.ask(s.peer, s.conn, s.end) })
	}
}

// returned ends the connection when the system call has returned, and lets the memory go.
func (s *stuck) returned(reason error) {
	if s.end != nil && s.conn.number == 0 {
		s.fence.learnEnd(s.peer, s.conn, s.end, reason)
	} else {
		s.conn.discard()
	}
	s.release()
}
