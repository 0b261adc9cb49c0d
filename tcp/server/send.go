package server

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"kvferry/core/hostmem"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"golang.org/x/sys/unix"
)

// How a session sends:
//
//  1. flush sends what the turn owes, and ends its pins. A turn with device memory goes to the sender instead (sender.go).
//  2. send makes the system calls. blameMemory finds the READ whose memory cannot be read.
//  3. catchUp returns when everything that was asked for so far is done and answered.

// flush ends the turn.
func (s *session) flush() error {
	if err := s.fetch(); err != nil {
		return err
	}
	if s.staged != nil && (s.turn.hasLoad() || s.senderBusy()) {
		return s.handOver()
	}
	t := s.turn
	if err := s.send(t.owed[:t.vectors], &s.waiting, t.isLong()); err != nil {
		var rejected *rejection
		if errors.As(err, &rejected) {
			t.reset() // what was owed before it is sent, and what is behind it is not
		}
		return err
	}
	s.countReads(t)
	s.trace.Answered(t.served, t.copying, t.copied)
	t.reset()
	s.noteCaughtUp()
	s.unpin()
	return nil
}

// countReads counts what a turn owed, which is sent. Of a READ that several turns have sent, the last one has the end.
func (s *session) countReads(t *turn) {
	if t.readBytes > 0 {
		s.bytesOut.Add(t.readBytes)
		s.read.Add(t.reads)
	}
}

// send sends the vectors, on behalf of the session or of its sender. long: see sendPart.
func (s *session) send(v []sockio.Vector, who *atomic.Bool, long bool) error {
	if long {
		s.server.long.Add(1)
		defer s.server.long.Add(-1)
	}
	for len(v) > 0 {
		n, err := s.sendPart(v, who, long)
		if errors.Is(err, unix.EFAULT) {
			return s.blameMemory(v, who, err)
		}
		if err != nil {
			return err
		}
		s.progress.Add(uint64(n))
		v = sockio.Advance(v, n)
	}
	return nil
}

// catchUp returns when everything that was asked for so far is done and answered.
func (s *session) catchUp() error {
	if err := s.flush(); err != nil || s.staged == nil {
		return err
	}
	return s.drain()
}

// noteCaughtUp forgets what the requests so far have touched: they are done.
func (s *session) noteCaughtUp() {
	s.reads = span{}
	if s.staged != nil {
		s.staged.touched = [2]span{}
	}
}

// blameMemory finds the READ whose payload is in memory that is gone, when v cannot be sent. It sends what comes before that
// payload, without the status that promises it, and returns the rejection of the READ.
func (s *session) blameMemory(v []sockio.Vector, who *atomic.Bool, fault error) error {
	at := slices.IndexFunc(v, func(one sockio.Vector) bool { return !hostmem.Readable(one.Base, one.Length) })
	if at < 0 { // it is there again
		return fmt.Errorf("%w: %w", errInaccessible, fault)
	}
	payload := v[at]
	h := wire.Header{Op: wire.Read, V2: s.v2, Addr: uint64(payload.Base), Length: payload.Length}
	rejected := inaccessible(h, s.regionOf(h), fault).(*rejection)
	before := v[:at]
	if rejected.started = at == 0 || !s.endsWithStatus(v[at-1]); !rejected.started {
		before[at-1].Length -= wire.StatusSize
	}
	if err := s.send(before, who, false); err != nil {
		return err
	}
	return rejected
}

// endsWithStatus reports whether the last bytes of what is owed are a whole status frame.
func (s *session) endsWithStatus(v sockio.Vector) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	turns := []*turn{s.turn}
	if s.staged != nil {
		turns = append(turns, s.staged.queue...)
	}
	last := v.Base + uintptr(v.Length) - wire.StatusSize
	return v.Length >= wire.StatusSize && slices.ContainsFunc(turns, func(t *turn) bool {
		frames := sockio.VectorOf(t.statuses[:])
		return frames.Holds(last)
	})
}
