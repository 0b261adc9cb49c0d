package tcp

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"kvferry/core"
	"kvferry/core/staging"
	"kvferry/core/status"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// A session serves device memory through staging blocks. A job copies between block and device while the session goes
// on with the next requests, and a second goroutine, the sender, waits for the jobs and answers:
//
//  1. stage takes the place of apply and readOut. A request that may touch what others before it move the other way
//     round waits for them.
//  2. room finds a place for its bytes in the turn's load, which is one lease of a block and the moves through it. Short
//     requests share a load, a long one passes through several. A load that has no room, or is for another device or the
//     other direction, ends the turn; then open leases the next.
//  3. WRITE: stageIn receives the payload into the block, and owes a status frame.
//  4. READ: stageOut owes a status frame and the payload, which will be in the block.
//  5. handOver, the flush of a turn with a load, starts the job and queues the turn for the sender. The session goes on
//     with a spare turn.
//  6. The sender takes the turns in order. answer sends what is owed for the requests before the job's first, waits for
//     the job, and sends the rest; retire gives the lease back and ends the pins.
//  7. A failed job is done again request by request, and the one to blame gets statusFailed. What is behind it is not
//     answered: the session ends as it does with a rejection.
//  8. endStaging, however the session ends, waits until no job is left.
const (
	// loadBytes is the lease for a run of short requests; a turn ends when it has as many. A copy of that length keeps a
	// device busy for about as long as it takes to start one, some 10 us, and a shorter one would delay the answers less
	// but waste the device. A payload that is longer gets a lease of its own, of up to a block.
	loadBytes = turnBytes

	// turnsAhead is how many turns the sender has at most: one whose answers are being sent, one whose job is running,
	// and one between the two that makes up for their unevenness. With the one that is being received a session
	// holds four leases: 1 MiB for short requests, four blocks for long ones.
	turnsAhead = 3
)

// staged is what a session needs for device memory. What is not the session's goroutine's alone is under its lock.
type staged struct {
	ctx      context.Context // ends with the session, or when the sender has failed
	cancel   context.CancelFunc
	accounts map[route]*staging.Account
	touched  [2]hull // by staging.Direction: of the requests that are not known to be done

	moved   *sync.Cond // queue, closing or failure has changed
	queue   []*turn    // the sender's; it is at the first
	spare   []*turn
	closing bool  // nothing is queued any more
	failure error // why the sender sends no more
	ended   chan struct{}
}

// route is a way between a device and the network.
type route struct {
	device *staging.Device
	way    staging.Direction
}

// load is one lease and the job that moves bytes through it.
type load struct {
	route
	lease   *staging.Lease
	end     uint64 // of the last move, in the lease
	growing bool   // the last move is of the request that is being served
	parts   []part // of requests, one for each move
	moves   []staging.Move
	job     staging.Job
	running bool
	done    chan error // from the job
	err     error      // what it came to
}

// part is what passes of a request through a load.
type part struct {
	wire.Header
	vector  int  // the first of the turn's that may only be sent when the move is done
	started bool // it is a READ whose answer has begun in a turn before
}

func newLoad() *load {
	l := &load{done: make(chan error, 1)}
	l.job.Done = func(err error) { l.done <- err }
	return l
}

func (s *session) startStaging() {
	d := &staged{accounts: map[route]*staging.Account{}, moved: sync.NewCond(&s.mu), ended: make(chan struct{})}
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

// takes reports whether the load has room for some of a request that it has bytes of already, or for all of a new one.
func (l *load) takes(rest wire.Header, to route) bool {
	switch {
	case l.lease == nil || l.route != to:
		return false
	case l.growing:
		return l.end < l.lease.Length
	}
	at := l.device.Place(l.end, uintptr(rest.Addr), rest.Length)
	return at < l.lease.Length && rest.Length <= l.lease.Length-at
}

// open waits for a lease for the turn, which is empty. What the session has leased before is given back meanwhile
// without its doing.
func (s *session) open(h, rest wire.Header, to route) error {
	account := s.staged.accounts[to]
	if account == nil {
		account = to.device.Account(to.way, staging.Target, nil)
		s.staged.accounts[to] = account
	}
	s.waiting.Store(false) // for the peer
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
	s.turn.load.route, s.turn.load.lease = to, lease
	return nil
}

// continues reports whether a READ's answer has begun when only the rest of it is left.
func continues(h, rest wire.Header) bool { return h.Op == wire.Read && rest.Length < h.Length }

func failed(p part, reason error) error {
	return &rejection{Header: p.Header, code: wire.StatusFailed, started: p.started, reason: reason}
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

// grow adds n bytes to the last move and takes them off the rest of its request.
func (l *load) grow(rest *wire.Header, n uint64) {
	l.moves[len(l.moves)-1].Length += n
	l.end += n
	rest.Addr += n
	rest.Length -= n
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
	if h.V2 {
		s.turn.oweStatus(wire.StatusOK)
	}
	return nil
}

// takeAhead copies what was read ahead of a payload into its place in a block.
func (s *session) takeAhead(place sockio.Vector) uint64 {
	n := copy(core.MemoryAt(place.Base, place.Length), s.ahead[s.parsed:s.filled])
	s.parsed += n
	return uint64(n)
}

// receiveStaged is receive for a payload's place in a block. Where it would wait while answers are owed it flushes
// instead and returns 0: the block is the job's from then on, and the payload goes on in another one.
func (s *session) receiveStaged(place sockio.Vector) (placed uint64, err error) {
	s.parsed, s.filled = 0, 0
	v := s.plan(place)
	if s.turn.requests > 0 {
		if s.emptied {
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

// handOver ends the turn: its job is started, and the sender does the rest, while the session goes on. It waits as long
// as the sender has enough to do.
func (s *session) handOver() error {
	d, t := s.staged, s.turn
	t.load.launch()
	s.waiting.Store(false) // for the peer
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.requests > 0 || t.vectors > 0 || t.loaded() {
		for len(d.queue) == turnsAhead {
			d.moved.Wait()
		}
		d.queue = append(d.queue, t)
		s.turn = d.spareTurn()
		if last := len(t.held) - 1; s.serving != nil { // it keeps its pin until its last turn is over
			s.turn.held = append(s.turn.held, t.held[last])
			t.held = t.held[:last]
		}
		d.moved.Broadcast()
	}
	return d.failure
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

// launch starts the job, if there is something to move.
func (l *load) launch() {
	last := len(l.moves) - 1
	if last >= 0 && l.moves[last].Length == 0 { // of a payload of which nothing has come
		l.moves, l.parts = l.moves[:last], l.parts[:last]
	}
	if len(l.moves) == 0 {
		l.release()
		return
	}
	l.start(l.moves)
}

func (l *load) start(moves []staging.Move) {
	l.job.Moves = moves
	l.running = true
	l.device.Start(l.way, &l.job)
}

// wait returns what the job came to.
func (l *load) wait() error {
	if l.running {
		l.err = <-l.done
		l.running = false
	}
	return l.err
}

// sendTurns is the sender. After a failure it only tidies up.
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
	for len(d.queue) == 0 && !d.closing {
		d.moved.Wait()
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
	if t.loaded() {
		sent = l.parts[0].vector
		if err := s.send(t.owed[:sent], &s.sending); err != nil {
			return err
		}
		if done, reason := l.outcome(); reason != nil {
			return s.answerSome(t, sent, done, reason)
		}
	}
	if err := s.send(t.owed[sent:t.vectors], &s.sending); err != nil {
		return err
	}
	s.bytesOut.Add(t.readBytes)
	return nil
}

// answerSome sends what is owed up to the part that failed, and returns the error that ends the session. That of a
// connection that does not take it any more matters less.
func (s *session) answerSome(t *turn, sent, done int, reason error) error {
	parts := t.load.parts
	if done == len(parts) {
		// The second try may have overwritten what the jobs behind it have written, so these are not to be answered.
		_ = s.send(t.owed[sent:t.vectors], &s.sending)
		return fmt.Errorf("copies that failed together have succeeded one by one: %w", reason)
	}
	_ = s.send(t.owed[sent:parts[done].vector], &s.sending)
	return failed(parts[done], reason)
}

// outcome is how many parts the job has moved, and what was wrong with the next. Nothing is known of any part after a
// job has failed, so each is moved by itself up to the one that is to blame. When all of them succeed then, there is
// still a reason: that of the first time.
func (l *load) outcome() (done int, reason error) {
	reason = l.wait()
	switch {
	case reason == nil:
		return len(l.parts), nil
	case len(l.parts) == 1:
		return 0, reason
	}
	for i := range l.parts {
		l.start(l.moves[i : i+1])
		if err := l.wait(); err != nil {
			return i, err
		}
	}
	return len(l.parts), reason
}

// release gives the lease back when no copy touches it any more.
func (l *load) release() {
	if l.lease == nil {
		return
	}
	_ = l.wait() // what it came to has been said, or matters to nobody any more
	l.lease.Release()
	l.route, l.lease, l.end, l.growing, l.err = route{}, nil, 0, false, nil
	l.parts, l.moves = l.parts[:0], l.moves[:0]
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
	d.queue = slices.Delete(d.queue, 0, 1)
	d.spare = append(d.spare, t)
	if err != nil {
		d.failure = err
		d.cancel()
		_ = s.conn.SetReadDeadline(sockio.Past) // fails on a connection that is closed already
	}
	d.moved.Broadcast()
}

// drain waits until the sender has nothing to do.
func (s *session) drain() error {
	s.waiting.Store(false) // for the peer
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.staged.queue) > 0 {
		s.staged.moved.Wait()
	}
	s.caughtUp()
	return s.staged.failure
}

// endStaging has the sender answer what it can, waits until no job is left, and returns why the session ends: what
// went wrong with a request comes before what has happened since.
func (s *session) endStaging(err error) error {
	d := s.staged
	if s.turn.loaded() || s.senderBusy() {
		_ = s.handOver() // its error is the failure below
	}
	s.mu.Lock()
	d.closing = true
	d.moved.Broadcast()
	s.mu.Unlock()
	<-d.ended
	d.cancel()
	for _, account := range d.accounts {
		account.Close()
	}
	return firstError(d.failure, err)
}

// loaded reports whether the turn has a load.
func (t *turn) loaded() bool { return t.load != nil && t.load.lease != nil }

// senderBusy reports whether only the sender may send: it has something to send, or has failed to.
func (s *session) senderBusy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.staged
	return len(d.queue) > 0 || d.failure != nil && !d.closing
}
