package server

import (
	"sync/atomic"

	"kvferry/tcp/sockio"
)

// Long payloads of many peers. Their sessions find something to receive or to send all the time, so they would use all processors.
// A session with a short request would wait for a place in Go's scheduler behind all of them, and its thread for the time slices of
// theirs: tens of milliseconds on two processors. So while short transfers are expected, the sessions of a crowd need a place to
// move bytes:
//
//  1. serveOne counts the requests with a long payload that are being served, and send the answers with one that are being sent.
//  2. receivePart and sendPart make each system call for such a payload with a place of the limiter that long copies on one host
//     have, too, and give it back at once: it goes to the session that waits longest. The session does not hold a place while it
//     waits for its peer. One that receives owes no answer while it waits for a place.
//  3. By an offer a session moves bytes without a place: whoever takes the offer back waits for it (receivePayload, isLong).

// crowd is how many long payloads are under way for each processor, from when on their sessions are a crowd. One peer has fewer
// lanes: on two processors it needs both for its bytes.
const crowd = 4

// limited is a system call of a session, or of its sender, that is made with a place.
type limited struct {
	session *session
	step    func() bool // tryStep, bound when the session is made: binding allocates
	call    func(v []sockio.Vector) (n int, again bool, err error)
	waiting *atomic.Bool // whether who makes it waits for the peer
	v       []sockio.Vector
	n       int
	err     error

	queued atomic.Bool // it waits for a place, or has one
}

func (l *limited) init(s *session, call func(v []sockio.Vector) (n int, again bool, err error)) {
	l.session, l.step, l.call = s, l.tryStep, call
}

// isCrowded reports whether the sessions with long payloads are a crowd.
func (v *Server) isCrowded() bool {
	return v.long.Load() >= int64(crowd*v.options.Processors.Count())
}

// inCrowd reports whether what the session is about to receive is a part of one of many long payloads.
func (s *session) inCrowd() bool { return s.bulk && s.serving != nil && s.server.isCrowded() }

// receivePart is Receive of the connection.
func (s *session) receivePart(v []sockio.Vector) (n int, err error) {
	if !s.inCrowd() {
		return s.conn.Receive(v)
	}
	l := &s.receives
	l.v, l.waiting = v, &s.waiting
	if err := s.conn.WhenReadable(l.step); err != nil {
		return 0, err
	}
	return l.n, l.err
}

// sendPart sends some of the vectors, on behalf of the session or of its sender. long says that they have a long payload.
func (s *session) sendPart(v []sockio.Vector, who *atomic.Bool, long bool) (n int, err error) {
	if long && s.server.isCrowded() {
		l := &s.sends
		l.v, l.waiting = v, who
		if err := s.conn.WhenWritable(l.step); err != nil {
			return 0, err
		}
		return l.n, l.err
	}
	n, again, err := s.conn.TrySend(v)
	if again {
		s.await(who, true)
		n, err = s.conn.Send(v)
		who.Store(false)
	}
	return n, err
}

// tryStep moves what can be moved now, and returns false where nothing can.
func (l *limited) tryStep() bool {
	l.queued.Store(true)
	defer l.queued.Store(false)
	l.waiting.Store(false) // we wait for a place now: the watchdog must not blame the peer
	if l.inTurn() {
		return true
	}
	l.session.await(l.waiting, true)
	return false
}

func (l *limited) inTurn() bool {
	limiter := l.session.server.options.Limiter
	if limiter.Acquire() {
		defer limiter.Release()
	}
	var again bool
	l.n, again, l.err = l.call(l.v)
	return !again
}
