package server

import (
	"cmp"
	"fmt"
	"slices"

	"kvferry/core/status"
	"kvferry/tcp/sockio"
)

// The sender answers for device memory:
//
//  1. handOver ends a turn of the session: it starts the job, and queues the turn. The session goes on with a spare turn.
//     A session that has nothing else to do, and a short job, answers itself: to wake the sender takes longer.
//  2. sendTurns, the sender's goroutine, takes the turns in order. answer sends what is owed for the requests before the
//     first one of the job, waits for the job, and sends the rest.
//  3. retire gives the lease back, and ends the pins.
//  4. drain and endStaging wait for the sender.

// turnsAhead is how many turns the sender has at most: one whose answers are being sent, one whose job is running, and one
// between them that evens out their times. With the turn that is being received, a session holds four leases: 1 MiB for
// short requests, four blocks for long ones.
const turnsAhead = 3

// handOver ends the turn: it starts the job, and leaves the rest to the sender. It waits while the sender has enough to do.
func (s *session) handOver() error {
	d, t := s.staged, s.turn
	t.load.launch()
	t.copying = s.trace.Now()
	s.waiting.Store(false) // we wait for the device now: the watchdog must not blame the peer
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.requests > 0 || t.vectors > 0 || t.hasLoad() {
		for len(d.queue) == turnsAhead {
			d.changed.Wait()
		}
		d.queue = append(d.queue, t)
		s.turn = d.spareTurn()
		if first := len(t.held) - s.pinned; s.serving != nil { // it keeps its pins until its last turn is over
			s.turn.held = append(s.turn.held, t.held[first:]...)
			clear(t.held[first:])
			t.held = t.held[:first]
			used := len(t.offers) - s.offersUsed
			s.turn.offers = append(s.turn.offers, t.offers[used:]...)
			clear(t.offers[used:])
			t.offers = t.offers[:used]
		}
		if d.failure == nil && len(d.queue) == 1 && s.mayAnswer(t) {
			s.answerItself(t)
		} else {
			d.changed.Broadcast()
		}
	}
	return d.failure
}

// mayAnswer reports whether the session waits for the job of a turn rather than for the peer: all that has come is served, and the
// job is short. After a long payload the next one is probably on its way.
func (s *session) mayAnswer(t *turn) bool {
	return t.load.running && t.bytes <= shortBurst && !s.bulk && s.serving == nil && s.drained && s.filled == s.parsed
}

// answerItself answers a turn, which is the only one in the queue, if its job is done soon and nothing comes from the peer before
// that. Otherwise it leaves the turn to the sender. The lock is held, and released meanwhile.
func (s *session) answerItself(t *turn) {
	d := s.staged
	d.answering = true
	s.mu.Unlock()
	s.parsed, s.filled = 0, 0
	next := s.plan(sockio.Vector{})
	s.jobs.SpinBriefly(spinTime, func() bool { return t.load.finished() || s.comesEarly(next) })
	soon := t.load.finished()
	if soon {
		s.retire(t, status.Guard(func() error { return s.answer(t) }))
	}
	s.mu.Lock()
	d.answering = false
	if !soon {
		d.changed.Broadcast()
	}
}

// comesEarly receives what follows the requests so far, and reports whether the session should look at it: at bytes, or at an error,
// which comes again.
func (s *session) comesEarly(v []sockio.Vector) bool {
	n, again, err := s.conn.TryReceive(v)
	if err == nil && !again {
		s.early = n
	}
	return !again
}

// spareTurn takes a turn that is empty.
func (d *staged) spareTurn() *turn {
	if last := len(d.spare) - 1; last >= 0 {
		t := d.spare[last]
		d.spare = d.spare[:last]
		return t
	}
	t := newTurn()
	t.load = newLoad()
	return t
}

// senderBusy reports whether only the sender may send: it has something to send, or has failed to.
func (s *session) senderBusy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.staged
	return len(d.queue) > 0 || d.failure != nil && !d.closing
}

// sendTurns is the sender. After a failure it only retires turns.
func (s *session) sendTurns() {
	defer close(s.staged.ended)
	for {
		t, broken := s.nextTurn()
		if t == nil {
			return
		}
		var err error
		if !broken {
			err = status.Guard(func() error { return s.answer(t) })
		}
		s.retire(t, err)
	}
}

func (s *session) nextTurn() (t *turn, broken bool) {
	d := s.staged
	s.mu.Lock()
	defer s.mu.Unlock()
	for d.answering || len(d.queue) == 0 && !d.closing {
		d.changed.Wait()
	}
	if len(d.queue) == 0 {
		return nil, false
	}
	return d.queue[0], d.failure != nil
}

// answer sends what is owed in a turn, each answer when its request is done.
func (s *session) answer(t *turn) error {
	l := t.load
	sent := 0
	if t.hasLoad() {
		sent = l.parts[0].vector
		if err := s.send(t.owed[:sent], &s.sending, t.isLong()); err != nil {
			return err
		}
		done, reason := l.outcome()
		t.copied = s.trace.Now()
		if reason != nil {
			return s.answerSome(t, sent, done, reason)
		}
	}
	if err := s.send(t.owed[sent:t.vectors], &s.sending, t.isLong()); err != nil {
		return err
	}
	s.countReads(t)
	s.trace.Answered(t.served, t.copying, t.copied)
	return nil
}

// answerSome sends what is owed up to the part that failed, and returns the error that ends the session. That of a
// connection that does not take it any more matters less.
func (s *session) answerSome(t *turn, sent, done int, reason error) error {
	parts := t.load.parts
	if done == len(parts) {
		// The second try may have overwritten what the jobs behind it have written, so these are not to be answered.
		_ = s.send(t.owed[sent:t.vectors], &s.sending, false)
		return fmt.Errorf("copies that failed together have succeeded one by one: %w", reason)
	}
	_ = s.send(t.owed[sent:parts[done].vector], &s.sending, false)
	return failed(parts[done], reason)
}

// retire makes a turn a spare one. An error ends the session.
func (s *session) retire(t *turn, err error) {
	d := s.staged
	t.load.release() // no copy touches the regions from here on
	t.reset()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range t.held {
		r.Unpin()
	}
	clear(t.held)
	t.held = t.held[:0]
	t.endOffers(0)
	d.queue = slices.Delete(d.queue, 0, 1)
	d.spare = append(d.spare, t)
	if err != nil {
		d.failure = err
		d.cancel()
		_ = s.conn.SetReadDeadline(sockio.Past) // fails on a connection that is closed already
	}
	if !d.answering { // otherwise nobody waits for it
		d.changed.Broadcast()
	}
}

// drain waits until the sender has nothing to do.
func (s *session) drain() error {
	s.waiting.Store(false) // we wait for the device now: the watchdog must not blame the peer
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.staged.queue) > 0 {
		s.staged.changed.Wait()
	}
	s.noteCaughtUp()
	return s.staged.failure
}

// endStaging has the sender answer what it can, waits until no job is left, and returns why the session ends: what
// went wrong with a request comes before what has happened since.
func (s *session) endStaging(err error) error {
	d := s.staged
	if s.turn.hasLoad() || s.senderBusy() {
		_ = s.handOver() // its error is the failure below
	}
	s.mu.Lock()
	d.closing = true
	d.changed.Broadcast()
	s.mu.Unlock()
	<-d.ended
	d.cancel()
	for _, account := range d.accounts {
		account.Close()
	}
	return cmp.Or(d.failure, err)
}
