package client

import (
	"errors"

	"go.uber.org/zap"
)

// stuck is a connection that a system call keeps in use, and the local memory that the call may still touch.
type stuck struct {
	fence   *fence
	conn    *connection
	end     *connectionEnd // of the WRITEs that were in flight; nil for none
	copied  bool           // the target may still be copying the memory, by the permit
	release func()         // lets the memory be taken back
}

// errStillUsed is why the memory of a transfer that has failed must not be used for something else.
var errStillUsed = errors.New("a system call that was given up may still touch the local memory until the page arrives that it waits for")

// holdStuck holds the local memory of pieces until the system call has returned.
func (f *fence) holdStuck(conn *connection, held []piece) *stuck {
	return &stuck{fence: f, conn: conn, release: f.hold(held, errStillUsed.Error())}
}

// quarantine revokes the permit, and keeps the WRITEs that were in flight from overwriting later ones. The connection itself is
// still in use.
func (s *stuck) quarantine(unanswered []piece) {
	if s.conn.permit != nil {
		s.copied = !s.conn.permit.Revoke(revokeTimeout, func() bool { return !s.conn.process.Lives() })
	}
	if len(unanswered) == 0 {
		return
	}
	s.end = s.fence.quarantine(s.conn, unanswered)
	if s.conn.number != 0 {
		s.fence.running.Go(func() { s.fence.ask(s.conn, s.end) })
	}
}

// warn logs which memory must not be used for something else. A caller that waits with a time-out of its own has no other
// way to learn it.
func (s *stuck) warn(held []piece) {
	const most = 8
	var ranges []string
	for i := range held[:min(len(held), most)] {
		ranges = append(ranges, held[i].localRange().String())
	}
	s.fence.log.Error("transfers were given up, but a system call may still use their memory until the page arrives that it waits for",
		zap.String("segment", s.conn.peer.name()), zap.Int("ranges", len(held)), zap.Strings("first", ranges))
}

// returned ends the connection when the system call has returned, and lets the memory go when the target does not copy it any
// more either.
func (s *stuck) returned(reason error) {
	switch {
	case s.end != nil && s.conn.number == 0:
		s.fence.learnEnd(s.conn, s.end, reason)
	case s.copied:
		s.conn.Reset()
		revoked := s.fence.awaitRevocation(s.conn)
		s.conn.release()
		if !revoked {
			return
		}
	default:
		s.conn.discard()
	}
	s.release()
}
