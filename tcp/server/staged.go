package server

import (
	"context"
	"fmt"
	"sync"

	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// A session serves device memory through staging blocks. A job copies between a block and the device while the session goes
// on with the next requests. A second goroutine, the sender, waits for the jobs and answers:
//
//  1. stage takes the place of apply and readOut. A request waits for requests before it that move bytes of the same memory in
//     the other direction.
//  2. room finds a place for the bytes of a request in the turn's load: one lease of a block, and the moves through it
//     (load.go). Short requests share a load. A long request passes through several loads. A load without room, or for
//     another device or direction, ends the turn; then open leases the next one.
//  3. WRITE: stageIn receives the payload into the block, and owes a status frame.
//  4. READ: stageOut owes a status frame and the payload, which will be in the block.
//  5. handOver, which is the flush of a turn with a load, starts the job and queues the turn for the sender (sender.go).
//  6. A failed job is done again request by request, and the request to blame gets StatusFailed. Requests behind it are not
//     answered: the session ends as it does with a rejection.
//  7. endStaging waits until no job is left, however the session ends.
const (
	// loadBytes is the lease for a run of short requests; a turn ends when it has as many. A copy of that length keeps a
	// device busy for about as long as it takes to start one, some 10 us, and a shorter one would delay the answers less
	// but waste the device. A payload that is longer gets a lease of its own, of up to a block.
	loadBytes = turnBytes
)

// staged is what a session needs for device memory. The session's lock guards what the sender uses as well.
type staged struct {
	ctx      context.Context // ends with the session, or when the sender has failed
	cancel   context.CancelFunc
	accounts map[route]*staging.Account // changed by the session's goroutine, under the lock
	touched  [2]span                    // by staging.Direction: of the requests that are not known to be done

	changed   *sync.Cond // queue, closing or failure has changed
	queue     []*turn    // the sender's; it is at the first
	answering bool       // the session is at the first
	spare     []*turn
	closing   bool  // nothing is queued any more
	failure   error // why the sender sends no more
	ended     chan struct{}
}

func (s *session) startStaging() {
	d := &staged{accounts: map[route]*staging.Account{}, changed: sync.NewCond(&s.mu), ended: make(chan struct{})}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	s.turn.load = newLoad()
	s.mu.Lock()
	s.staged = d
	if s.cause != nil {
		d.cancel()
	}
	s.mu.Unlock()
	go s.sendTurns()
}

// stage moves or owes the payload of a request for device memory.
func (s *session) stage(h wire.Header, device *staging.Device) error {
	if s.staged == nil {
		s.startStaging()
	}
	to, opposite := route{device, staging.In}, staging.Out
	if h.Op == wire.Read {
		to, opposite = route{device, staging.Out}, staging.In
	}
	// Jobs of one direction run in order; between the two there is none.
	if s.staged.touched[opposite].meets(h) {
		if err := s.catchUp(); err != nil {
			return err
		}
	}
	var err error
	if h.Op == wire.Read {
		err = s.stageOut(h, to)
	} else {
		err = s.stageIn(h, to)
	}
	s.turn.load.growing = false
	return err
}

// room is a place for the next bytes of a request, of which rest is what has found none yet.
func (s *session) room(h, rest wire.Header, to route) (sockio.Vector, error) {
	if !s.turn.load.takes(rest, to) {
		if err := s.flush(); err != nil {
			return sockio.Vector{}, err
		}
		if err := s.open(h, rest, to); err != nil {
			return sockio.Vector{}, err
		}
	}
	l := s.turn.load
	if !l.growing {
		s.staged.touched[to.way].add(h)
		s.begin(h, rest)
	}
	return sockio.Vector{Base: l.lease.Addr + uintptr(l.end), Length: min(rest.Length, l.lease.Length-l.end)}, nil
}

// open waits for a lease for the turn, which is empty. What the session has leased before is given back meanwhile
// without its doing.
func (s *session) open(h, rest wire.Header, to route) error {
	account := s.staged.accounts[to]
	if account == nil {
		account = to.device.Account(to.way, staging.Target, nil)
		s.mu.Lock()
		s.staged.accounts[to] = account
		s.mu.Unlock()
	}
	s.waiting.Store(false) // we wait for a block now: the watchdog must not blame the peer
	lease, err := account.Lease(s.staged.ctx, min(max(rest.Length, loadBytes), to.device.BlockSize()))
	if s.staged.ctx.Err() != nil {
		if err == nil {
			lease.Release()
		}
		return fmt.Errorf("waiting for a staging block: %w", s.staged.ctx.Err())
	}
	if err != nil {
		return failed(part{Header: h, started: continues(h, rest)}, err)
	}
	if h.Length < bulkLength {
		to.device.Expect(to.way)
	}
	s.turn.load.route, s.turn.load.lease = to, lease
	return nil
}

// begin starts a move for a request.
func (s *session) begin(h, rest wire.Header) {
	t := s.turn
	l := t.load
	l.end = l.device.Place(l.end, uintptr(rest.Addr), rest.Length)
	l.growing = true
	l.parts = append(l.parts, part{Header: h, vector: t.vectors, started: continues(h, rest)})
	l.moves = append(l.moves, staging.Move{Device: uintptr(rest.Addr), Block: l.lease.Addr + uintptr(l.end)})
	t.sealed = t.vectors
}

// stageIn receives the payload of a WRITE into blocks.
func (s *session) stageIn(h wire.Header, to route) error {
	s.bulk = h.Length >= bulkLength
	for rest := h; rest.Length > 0; {
		place, err := s.room(h, rest, to)
		if err != nil {
			return err
		}
		n := s.takeAhead(place)
		if n == 0 {
			n, err = s.receiveStaged(place)
		}
		switch {
		case err != nil:
			return cutShort(h, rest.Length, err)
		case n > 0:
			s.turn.load.grow(&rest, n)
		}
	}
	s.bytesIn.Add(h.Length)
	s.written.Add(1)
	if h.V2 {
		s.turn.oweStatus(wire.StatusOK)
	}
	return nil
}

// takeAhead copies what was read ahead of a payload into its place in a block.
func (s *session) takeAhead(place sockio.Vector) uint64 {
	n := copy(hostmem.At(place.Base, place.Length), s.ahead[s.parsed:s.filled])
	s.parsed += n
	return uint64(n)
}

// receiveStaged is receive for a payload's place in a block. Where it would wait while answers are owed it flushes
// instead and returns 0: the block is the job's from then on, and the payload goes on in another one.
func (s *session) receiveStaged(place sockio.Vector) (placed uint64, err error) {
	s.parsed, s.filled = 0, 0
	v := s.plan(place)
	if s.turn.requests > 0 {
		if s.drained {
			return 0, s.flush()
		}
		n, again, err := s.conn.TryReceive(v)
		switch {
		case again:
			return 0, s.flush()
		case err != nil:
			return 0, err
		}
		return s.received(v, place, n), nil
	}
	s.await(&s.waiting, true)
	n, err := s.conn.Receive(v)
	if err != nil {
		return 0, err
	}
	return s.received(v, place, n), nil
}

// stageOut owes the answer to a READ, from blocks that a job is going to fill.
func (s *session) stageOut(h wire.Header, to route) error {
	s.bulk = false
	for rest := h; rest.Length > 0; {
		place, err := s.room(h, rest, to)
		if err != nil {
			return err
		}
		if h.V2 && rest.Length == h.Length {
			s.turn.oweStatus(wire.StatusOK)
		}
		s.turn.owePayload(place.Base, place.Length)
		s.turn.load.grow(&rest, place.Length)
	}
	return nil
}

// holdsWanted reports whether the session holds staging memory that others wait for.
func (s *session) holdsWanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.staged == nil {
		return false
	}
	for _, account := range s.staged.accounts {
		if account.IsWanted() {
			return true
		}
	}
	return false
}

// continues reports whether a READ's answer has begun when only the rest of it is left.
func continues(h, rest wire.Header) bool { return h.Op == wire.Read && rest.Length < h.Length }

func failed(p part, reason error) error {
	return &rejection{Header: p.Header, code: wire.StatusFailed, started: p.started, reason: reason}
}
