package server

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// How a session receives:
//
//  1. fillTo reads ahead until there are enough bytes of a header.
//  2. receive receives a payload into its place, and in the same system call what follows it into the read-ahead buffer.
//  3. receiveOrWait flushes before it waits. After short requests it spins for the next one first.
const (
	// Payload of up to readAhead bytes is copied from the read-ahead buffer when it is there: a copy is cheaper than a
	// system call.
	readAhead = 64 << 10

	// A peer that has sent nothing valid gets firstAhead bytes of memory: as much as the longest hello needs.
	firstAhead = wire.HeaderSize + wire.MaxHelloBody

	// Payload of bulkLength or more is received in place. Only bulkReadAhead bytes of what follows it are read ahead, because
	// the next payload is probably as long.
	bulkLength    = 32 << 10
	bulkReadAhead = 1 << 10

	// After requests that came together, of at most shortBurst bytes in all, a session spins for the next request for
	// spinTime. That is longer than a peer needs to take the answers and ask again.
	shortBurst = 512 << 10
	spinTime   = 200 * time.Microsecond
)

// readInto makes a buffer the one to read ahead into. No goroutine sends.
func (s *session) readInto(buffer []byte) {
	s.filled = copy(buffer, s.ahead[s.parsed:s.filled])
	s.parsed, s.ahead = 0, buffer
	s.conn.SetLibraryMemory(sockio.VectorOf(s.ahead), sockio.VectorOf(s.turn.statuses[:]))
}

// fillTo reads ahead until so many bytes of a header are there.
func (s *session) fillTo(bytes int) error {
	for s.filled-s.parsed < bytes {
		err := s.fill()
		if err == io.EOF && s.filled > s.parsed {
			err = fmt.Errorf("the peer closed the connection after %d of %d bytes of a header: %w",
				s.filled-s.parsed, bytes, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fill adds to what is read ahead, which is less than a header.
func (s *session) fill() error {
	s.filled = copy(s.ahead, s.ahead[s.parsed:s.filled])
	s.parsed = 0
	_, err := s.receive(sockio.Vector{})
	return err
}

// receive receives into place and, beyond it, into the read-ahead buffer. It returns how many bytes went to place.
func (s *session) receive(place sockio.Vector) (placed uint64, err error) {
	v := s.plan(place)
	n, err := s.receiveOrWait(v)
	if err != nil {
		return 0, err
	}
	return s.received(v, place, n), nil
}

// plan lays out where the bytes go that receive is about to receive.
func (s *session) plan(place sockio.Vector) []sockio.Vector {
	v := s.in[:0]
	if place.Length > 0 {
		v = append(v, place)
	}
	window := s.ahead[s.filled:]
	if s.bulk {
		window = window[:min(len(window), bulkReadAhead)]
	}
	return append(v, sockio.VectorOf(window))
}

// received accounts for n bytes that were received into v, and returns how many of them went to place.
func (s *session) received(v []sockio.Vector, place sockio.Vector, n int) (placed uint64) {
	s.progress.Add(uint64(n))
	s.readAt = s.trace.Now()
	s.copier.Renew()
	if s.spinner.Polling > 0 {
		s.server.polled.Add(1)
	}
	s.drained = uint64(n) < place.Length+v[len(v)-1].Length
	placed = min(uint64(n), place.Length)
	s.filled += n - int(placed)
	return placed
}

// receiveOrWait flushes before it waits, and before it returns io.EOF. After a receive that has drained the socket buffer a
// wait is likely: then it flushes at once, which saves a receive that finds nothing.
func (s *session) receiveOrWait(v []sockio.Vector) (int, error) {
	if s.early > 0 {
		return s.takeEarly(), nil
	}
	t := s.turn
	if !s.drained && (t.vectors > 0 || t.hasLoad()) && !s.inCrowd() {
		n, again, err := s.conn.TryReceive(v)
		if !again && err != io.EOF {
			return n, err
		}
	}
	between := s.serving == nil && s.filled == 0 && !t.hasLoad()
	short := s.burst > 0 && s.burst <= shortBurst
	if err := s.flush(); err != nil {
		return 0, err
	}
	if s.early > 0 {
		return s.takeEarly(), nil
	}
	if between {
		s.server.options.Limiter.Note(s.burst)
		s.burst = 0
	}
	if between && short {
		if n, again, err := s.spin(v); !again {
			return n, err
		}
	}
	if s.serving != nil || s.filled > 0 {
		s.await(&s.waiting, true)
		return s.receivePart(v)
	}
	s.await(&s.waiting, false)
	if s.silent.Load() {
		return s.conn.Receive(v)
	}
	return s.receiveNext(v)
}

// takeEarly is how many bytes have come while the session waited for a job. They are where they would be received now: the
// session was between two requests, and had nothing read ahead.
func (s *session) takeEarly() (n int) {
	n, s.early = s.early, 0
	return n
}

// receiveNext waits for the next request. The session may give way meanwhile.
func (s *session) receiveNext(v []sockio.Vector) (int, error) {
	s.rest()
	n, err := s.conn.Receive(v)
	if err == nil {
		err = s.resume()
	}
	return n, err
}

// spin spins for the next request of a peer that sends a short request as soon as the last one is answered. With polling, it
// stops as soon as another session has something to do, so that sessions do not keep the processors from each other.
func (s *session) spin(v []sockio.Vector) (n int, again bool, err error) {
	again = true
	before := s.server.polled.Load()
	s.copier.Prepare()
	s.spinner.Spin(spinTime, func() bool {
		n, again, err = s.conn.TryReceive(v)
		return !again || s.server.polled.Load() != before
	}, s.conn.SleepUntilReadable)
	return n, again, err
}

// await notes whether the session or its sender is about to wait for the peer in the middle of something. who is the flag of
// either.
func (s *session) await(who *atomic.Bool, rest bool) {
	who.Store(rest)
	if rest {
		s.server.watch()
	}
}
