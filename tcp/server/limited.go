package server

import (
	"sync/atomic"

	"kvferry/tcp/sockio"
)

// Long payloads of many peers. Their sessions find something to receive all the time, so they would use all processors. A session
// with a short request would wait for a place in Go's scheduler behind all of them, and its thread for the time slices of theirs:
// tens of milliseconds on two processors. So while short transfers are expected, the sessions of a crowd need a place to receive:
//
//  1. serveOne counts the requests with a long payload that are being served.
//  2. receivePart makes each system call for such a payload with a place of the limiter that long copies on one host have, too,
//     and gives it back at once: it goes to the session that waits longest. The session does not hold a place while it waits for
//     its peer, and owes no answer while it waits for a place.
//  3. By an offer a session receives without a place: whoever takes the offer back waits for it (receivePayload).

// crowd is how many requests with a long payload are under way for each processor, from when on their sessions are a crowd. One
// peer has fewer lanes: on two processors it needs both for its bytes.
const crowd = 4

// limited is the receive that step makes.
type limited struct {
	step func() bool // receiveStep, bound when the session is made: binding allocates
	v    []sockio.Vector
	n    int
	err  error

	queued atomic.Bool // it waits for a place, or receives with one
}

// inCrowd reports whether what the session is about to receive is a part of one of many long payloads.
func (s *session) inCrowd() bool {
	v := s.server
	return s.bulk && s.serving != nil && v.receiving.Load() >= int64(crowd*v.options.Processors.Count())
}

// receivePart is Receive of the connection.
func (s *session) receivePart(v []sockio.Vector) (n int, err error) {
	if !s.inCrowd() {
		return s.conn.Receive(v)
	}
	l := &s.limited
	l.v = v
	if err := s.conn.WhenReadable(l.step); err != nil {
		return 0, err
	}
	return l.n, l.err
}

// receiveStep receives what has come, and returns false where nothing has.
func (s *session) receiveStep() bool {
	s.limited.queued.Store(true)
	defer s.limited.queued.Store(false)
	s.waiting.Store(false) // we wait for a place now: the watchdog must not blame the peer
	if s.receiveInTurn() {
		return true
	}
	s.await(&s.waiting, true)
	return false
}

func (s *session) receiveInTurn() bool {
	if s.server.options.Limiter.Acquire() {
		defer s.server.options.Limiter.Release()
	}
	l := &s.limited
	var again bool
	l.n, again, l.err = s.conn.ReceiveNow(l.v, false)
	return !again
}
