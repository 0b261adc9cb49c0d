package tcp

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/status"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// A session serves one data connection, on one goroutine, strictly in the order of the requests:
//
//  1. nextHeader takes a request from the read-ahead buffer; fill receives as many more as have arrived.
//  2. pin checks the range against the registered regions and keeps the region from going away.
//  3. WRITE: apply copies what was read ahead of the payload into the region and receives the rest in place, in the
//     same system call as what follows it. Then it owes a status frame.
//  4. READ: readOut owes a status frame and the payload, which stays in the region until it is sent.
//  5. flush ends the turn: it sends what is owed in one system call and ends the pins. That is when the session would
//     wait for the peer, so that nothing is withheld from it, and at the latest when a turn is full.
//  6. finish ends the connection. A rejected peer gets its status first.
//
// A request for device memory takes another way at 3 and 4: see session_staged.go.
const (
	// A turn is full with so many requests or bytes.
	turnRequests = 128
	turnBytes    = 256 << 10

	// Payload of up to readAhead bytes is copied from the read-ahead buffer when it is there: cheaper than system calls.
	readAhead = 64 << 10

	// Payload of bulkLength or more is received in place, and only bulkReadAhead bytes of what follows it are read
	// ahead, since that is probably as long.
	bulkLength    = 32 << 10
	bulkReadAhead = 1 << 10

	// After requests that came together, of at most shortBurst bytes in all, a session looks for the next ones for
	// lookAheadTime: what a peer needs to take its answers and ask again, and then some.
	shortBurst    = 512 << 10
	lookAheadTime = 200 * time.Microsecond

	// A peer that was rejected while it was sending has to get around to reading the status. Until then what it sends
	// is thrown away: closing would reset the connection, and the status might be lost.
	rejectedTime  = time.Second
	rejectedBytes = 16 << 20
)

// errInaccessible is about memory that its owner has unmapped, or protected, without unregistering it first.
var errInaccessible = errors.New("registered memory cannot be accessed: it was unmapped or protected, or its file cut short")

// errEnded is why a request is not served of a session that somebody ended: session.cause says why.
var errEnded = errors.New("the session was ended")

// regions is what sessions need of a core.Registry.
type regions interface {
	PinRemote(addr, length uint64) (*core.Region, error)
	Epoch() *atomic.Uint64
}

type session struct {
	target *target
	conn   *sockio.Socket
	peer   string // host:port
	host   string

	process *samehost.Process // of the peer, on one host; nil where its memory is out of reach
	permit  *samehost.Permit  // to copy from it; nil for none

	// Read ahead: the bytes in ahead[parsed:filled] have not been served yet.
	ahead          [readAhead]byte
	parsed, filled int
	next           sockio.Spinner
	burst          uint64           // bytes of the requests since it last waited for one
	emptied        bool             // the last receive took all that there was
	bulk           bool             // the last payload was long
	in             [2]sockio.Vector // for receive
	copier         hostmem.Copier

	turn    *turn
	reads   hull         // of the READ payloads owed from host memory
	serving *core.Region // of the request whose payload has not been applied or owed completely
	v2      bool         // the last request was: the peer takes no end of the connection for success
	staged  *staged      // nil before the first request for device memory
	fetches *fetches     // nil before the first WRITE by address

	key  connectionKey // of its hello; a zero number for none; under the target's lock
	over chan struct{} // closed when the session has ended

	mu    sync.Mutex // for whoever ends the session, and for the sender
	cause error      // why somebody else ended it

	// Whether the session, or its sender, waits for a peer that has to move on: not at the end of a request with
	// nothing owed.
	waiting, sending atomic.Bool

	progress atomic.Uint64 // grows whenever bytes move
	bytesIn  atomic.Uint64 // payload
	bytesOut atomic.Uint64

	stalledSince time.Time // of target.check: when it first saw the session wait
	stalledAt    uint64    // with this progress
}

// turn is what is served between two flushes. Vectors in owed point into statuses, into held regions and into staging
// blocks.
type turn struct {
	requests    int    // served completely
	bytes       uint64 // their payload
	owed        [2 * turnRequests]sockio.Vector
	vectors     int
	sealed      int // what is owed from here on is not to be sent in one vector with what comes before
	statuses    [turnRequests * wire.StatusSize]byte
	statusesEnd int
	grants      []byte // never beyond its capacity: what is owed points into it
	readBytes   uint64 // READ payload owed

	held []*core.Region // pinned; for others than the session's goroutine under its lock
	load *load          // nil in a session that was never asked for device memory
}

func newTurn() *turn { return &turn{held: make([]*core.Region, 0, turnRequests+1)} }

// hull is a range that holds every range added to it. The empty one meets nothing.
type hull struct{ low, high uint64 }

func (u *hull) add(h wire.Header) {
	if u.high == 0 {
		u.low = h.Addr
	}
	u.low, u.high = min(u.low, h.Addr), max(u.high, h.Addr+h.Length)
}

func (u *hull) meets(h wire.Header) bool { return h.Addr < u.high && u.low < h.Addr+h.Length }

// rejection ends a session whose peer asked for what it cannot have, or for what went wrong.
type rejection struct {
	wire.Header
	code    uint32 // for the peer
	started bool   // the answer to the READ has been sent in part: a status has no place in it any more
	reason  error
	region  *core.Region // whose memory is inaccessible; nil otherwise
}

func (r *rejection) Error() string {
	return fmt.Sprintf("rejected a %v of %d bytes at %#x with status %d: %v", r.Op, r.Length, r.Addr, r.code, r.reason)
}

func (r *rejection) Unwrap() error { return r.reason }

func newSession(t *target, conn *sockio.Socket) *session {
	s := &session{
		target: t, conn: conn, emptied: true, turn: newTurn(), next: sockio.Spinner{Polling: t.options.polling}, over: make(chan struct{}),
	}
	conn.SetLibraryMemory(sockio.VectorOf(s.ahead[:]), sockio.VectorOf(s.turn.statuses[:]))
	switch remote := conn.Remote.(type) {
	case *net.TCPAddr:
		s.peer, s.host = remote.String(), remote.IP.String()
	case *net.UnixAddr:
		err := conn.Control(func(socket int) (err error) {
			s.process, err = samehost.PeerProcess(socket)
			return err
		})
		if err != nil {
			t.log.Debug("the memory of a peer on this host is out of reach", zap.Error(err))
		}
		s.peer, s.host = s.process.String(), "localhost"
	}
	return s
}

// run serves until the connection ends, and closes it. The error is why it ended, nil when the peer wanted it to.
func (s *session) run() error {
	err := status.Guard(s.serve)
	if s.staged != nil {
		err = s.endStaging(err)
	}
	err = s.finish(err)
	s.serving = nil
	s.unpin()
	_ = errors.Join(s.process.Close(), s.permit.Close()) // nobody copies any more
	return err
}

// serve returns io.EOF when the peer closed the connection between two requests and has been answered.
func (s *session) serve() error {
	if err := s.meet(); err != nil {
		return err
	}
	for {
		h, err := s.nextHeader()
		if err != nil {
			return err
		}
		s.v2 = h.V2
		region, err := s.pin(h)
		switch {
		case err == errEnded:
			return err
		case err != nil:
			return &rejection{Header: h, code: wire.StatusRejected, reason: err}
		}
		if err := s.move(h, region); err != nil {
			return err
		}
		t := s.turn
		t.requests++
		t.bytes += h.Length
		s.burst += h.Length
		if t.requests == turnRequests || t.bytes >= turnBytes {
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
}

// move moves the payload of a WRITE, and owes what a request is to be answered.
func (s *session) move(h wire.Header, region *core.Region) (err error) {
	s.serving = region
	switch {
	case h.ByAddress:
		err = s.neighbourly(h, region)
	case region.Device != nil:
		err = s.stage(h, region.Device)
	case h.Op == wire.Read:
		err = s.readOut(h, region)
	default:
		err = s.apply(h)
	}
	if err == nil {
		s.serving = nil
	}
	return err
}

func (s *session) nextHeader() (wire.Header, error) {
	if err := s.fillTo(wire.HeaderSize); err != nil {
		return wire.Header{}, err
	}
	b := s.ahead[s.parsed:]
	s.parsed += wire.HeaderSize
	return wire.ParseHeader(b, s.conn.IsLocal())
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
	s.filled = copy(s.ahead[:], s.ahead[s.parsed:s.filled])
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

// received accounts for n bytes that came to where v says, and returns how many of them went to place.
func (s *session) received(v []sockio.Vector, place sockio.Vector, n int) (placed uint64) {
	s.progress.Add(1)
	s.copier.Renew()
	if s.next.Polling > 0 {
		s.target.polled.Add(1)
	}
	s.emptied = uint64(n) < place.Length+v[len(v)-1].Length
	placed = min(uint64(n), place.Length)
	s.filled += n - int(placed)
	return placed
}

// receiveOrWait sends what is owed before it waits, and before it returns io.EOF. Once a receive has emptied the socket
// buffer waiting is likely, and flushing first saves the vain system call.
func (s *session) receiveOrWait(v []sockio.Vector) (int, error) {
	t := s.turn
	if !s.emptied && (t.vectors > 0 || t.loaded()) {
		n, again, err := s.conn.TryReceive(v)
		if !again && err != io.EOF {
			return n, err
		}
	}
	between := s.serving == nil && s.filled == 0 && !t.loaded()
	short := s.burst > 0 && s.burst <= shortBurst
	if err := s.flush(); err != nil {
		return 0, err
	}
	if between {
		copies.Note(s.burst)
		s.burst = 0
	}
	if between && short {
		if n, again, err := s.lookAhead(v); !again {
			return n, err
		}
	}
	s.await(&s.waiting, s.serving != nil || s.filled > 0)
	return s.conn.Receive(v)
}

// lookAhead looks for the next request of a peer that sends short ones, each when the last is answered. Who polls leaves
// off as soon as another session has something to do, so that they do not keep the processors from each other.
func (s *session) lookAhead(v []sockio.Vector) (n int, again bool, err error) {
	again = true
	before := s.target.polled.Load()
	s.copier.Prepare()
	s.next.Spin(lookAheadTime, func() bool {
		n, again, err = s.conn.TryReceive(v)
		return !again || s.target.polled.Load() != before
	})
	return n, again, err
}

// await tells the target's watch whether the wait that follows, of the session or of its sender, is for the rest of
// something.
func (s *session) await(who *atomic.Bool, rest bool) {
	who.Store(rest)
	if rest {
		s.target.watch()
	}
}

// pin finds the region of a request and pins it until the turn ends. Pinning and making it known to evict are one step. A
// session that somebody has ended pins no more: requests that it has read already are not served.
func (s *session) pin(h wire.Header) (*core.Region, error) {
	t := s.turn
	if n := len(t.held); n > 0 && within(t.held[n-1], h) {
		return t.held[n-1], nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return nil, errEnded
	}
	region, err := s.target.memory.PinRemote(h.Addr, h.Length)
	if err != nil {
		return nil, err
	}
	t.held = append(t.held, region)
	return region, nil
}

func within(r *core.Region, h wire.Header) bool { return r.Holds(h.Addr, h.Length) }

// unpin ends the pins of the turn, but for the last one while that is the pin of the request being served.
func (s *session) unpin() {
	t := s.turn
	if len(t.held) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := t.held[:0]
	if s.serving != nil {
		last := len(t.held) - 1
		t.held[0], t.held[last] = t.held[last], t.held[0]
		kept = t.held[:1]
	}
	for _, r := range t.held[len(kept):] {
		r.Unpin()
	}
	clear(t.held[len(kept):])
	t.held = kept
}

// apply moves the payload of a WRITE into its region.
func (s *session) apply(h wire.Header) error {
	if s.reads.meets(h) {
		if err := s.catchUp(); err != nil { // the READ came first, and gets what was there before
			return err
		}
	}
	if s.fetches != nil && s.fetches.meets(h) {
		if err := s.fetch(); err != nil {
			return err
		}
	}
	s.bulk = h.Length >= bulkLength
	left := sockio.Vector{Base: uintptr(h.Addr), Length: h.Length}
	buffered := min(uint64(s.filled-s.parsed), left.Length)
	if err := s.copier.Fill(left.Base, s.ahead[s.parsed:][:buffered]); err != nil {
		return inaccessible(h, s.serving, err)
	}
	s.parsed += int(buffered)
	for placed := buffered; placed < left.Length; {
		left.Base += uintptr(placed)
		left.Length -= placed
		s.parsed, s.filled = 0, 0
		var err error
		placed, err = s.receive(left)
		switch {
		case errors.Is(err, unix.EFAULT):
			return inaccessible(h, s.serving, err)
		case err != nil:
			return cutShort(h, left.Length, err)
		}
	}
	s.bytesIn.Add(h.Length)
	if h.V2 {
		s.turn.oweStatus(wire.StatusOK)
	}
	return nil
}

func inaccessible(h wire.Header, region *core.Region, err error) error {
	return &rejection{Header: h, code: wire.StatusInaccessible, reason: fmt.Errorf("%w: %w", errInaccessible, err), region: region}
}

// errCutShort is in the error of a WRITE whose payload stopped to come.
var errCutShort = errors.New("missing")

func cutShort(h wire.Header, missing uint64, err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d bytes of a WRITE of %d at %#x are %w: %w", missing, h.Length, h.Addr, errCutShort, err)
}

// readOut owes the answer to a READ.
func (s *session) readOut(h wire.Header, region *core.Region) error {
	if region.Unverified() && !hostmem.Readable(uintptr(h.Addr), h.Length) {
		return inaccessible(h, region, unix.EFAULT)
	}
	s.bulk = false
	s.reads.add(h)
	if h.V2 {
		s.turn.oweStatus(wire.StatusOK)
	}
	s.turn.owePayload(uintptr(h.Addr), h.Length)
	return nil
}

func (t *turn) owePayload(base uintptr, length uint64) {
	t.readBytes += length
	t.owe(base, length)
}

func (t *turn) oweStatus(code uint32) {
	b := t.statuses[t.statusesEnd : t.statusesEnd+wire.StatusSize]
	t.statusesEnd += wire.StatusSize
	wire.PutStatus(b, code)
	t.owe(sockio.AddressOf(b), wire.StatusSize)
}

func (t *turn) oweGrant(g wire.Grant) {
	if t.grants == nil {
		t.grants = make([]byte, 0, turnRequests*wire.GrantSize)
	}
	end := len(t.grants)
	t.grants = t.grants[:end+wire.GrantSize]
	wire.PutGrant(t.grants[end:], g)
	t.owe(sockio.AddressOf(t.grants[end:]), wire.GrantSize)
}

func (t *turn) owe(base uintptr, length uint64) {
	// In place: a turn owes no more than there is room for.
	t.vectors = t.sealed + len(sockio.Extend(t.owed[t.sealed:t.vectors], base, length))
}

// flush ends the turn.
func (s *session) flush() error {
	if err := s.fetch(); err != nil {
		return err
	}
	if s.staged != nil && (s.turn.loaded() || s.senderBusy()) {
		return s.handOver()
	}
	t := s.turn
	if err := s.send(t.owed[:t.vectors], &s.waiting); err != nil {
		var rejected *rejection
		if errors.As(err, &rejected) {
			t.reset() // what was owed before it is sent, and what is behind it is not
		}
		return err
	}
	s.bytesOut.Add(t.readBytes)
	t.reset()
	s.caughtUp()
	s.unpin()
	return nil
}

// send sends the vectors, on behalf of the session or of its sender.
func (s *session) send(v []sockio.Vector, who *atomic.Bool) error {
	for len(v) > 0 {
		n, again, err := s.conn.TrySend(v)
		if again {
			s.await(who, true)
			n, err = s.conn.Send(v)
			who.Store(false)
		}
		if errors.Is(err, unix.EFAULT) {
			return s.blameMemory(v, who, err)
		}
		if err != nil {
			return err
		}
		s.progress.Add(1)
		v = sockio.Advance(v, n)
	}
	return nil
}

// blameMemory finds out which READ has its payload in memory that is gone, when none of v can be sent together. It sends what
// comes before that, without the status which promises the payload, and returns the rejection of the READ.
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
	if err := s.send(before, who); err != nil {
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

// regionOf is the region that holds the payload of a READ which is owed, for an error; nil when it is not known any more.
func (s *session) regionOf(h wire.Header) *core.Region {
	for _, r := range s.holds() {
		if within(r, h) {
			return r
		}
	}
	return nil
}

func (t *turn) reset() {
	t.requests, t.bytes, t.vectors, t.sealed, t.statusesEnd, t.readBytes = 0, 0, 0, 0, 0, 0
	t.grants = t.grants[:0]
}

// catchUp returns when everything that was asked for so far is done and answered.
func (s *session) catchUp() error {
	if err := s.flush(); err != nil || s.staged == nil {
		return err
	}
	return s.drain()
}

// caughtUp forgets what the requests so far have touched: they are done.
func (s *session) caughtUp() {
	s.reads = hull{}
	if s.staged != nil {
		s.staged.touched = [2]hull{}
	}
}

// finish closes the connection and returns why, unless the peer wanted it to or the engine is being closed. A peer that
// sent a WRITE without asking for a status takes an orderly close for success, so that is only for connections where
// nothing was left undone; the others are reset. Where the peer goes on sending that cannot be known: the WRITE may just
// have come.
func (s *session) finish(err error) error {
	var rejected *rejection
	orderly := false
	switch cause := s.ended(); {
	case err == io.EOF:
		orderly, err = true, nil
	case errors.As(err, &rejected):
		orderly = s.refuse(rejected)
	case cause != nil:
		orderly, err = err != errEnded && s.v2 && s.between(), whatEnded(cause, err)
	}
	if orderly {
		_ = s.conn.Close()
	} else {
		s.conn.Reset()
	}
	if err == errTargetClosed {
		err = nil
	}
	s.report(err)
	return err
}

// whatEnded is why a session ended that somebody else ended, and how far a WRITE had come that was being received.
func whatEnded(cause, err error) error {
	if cause != errTargetClosed && errors.Is(err, errCutShort) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return cause
}

// refuse sends what is owed for the requests before the rejected one and, where the peer understands it, the reason.
// It reports whether the peer has read all that and closed its side.
func (s *session) refuse(r *rejection) bool {
	s.serving = nil
	answer := r.V2 && !r.started
	if answer {
		s.turn.oweStatus(r.code)
	}
	if s.flush() != nil || !answer || s.conn.CloseWrite() != nil {
		return false
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(rejectedTime))
	if s.ended() != nil { // by a deadline that has just been overwritten
		return false
	}
	return s.conn.Discard(s.ahead[:], rejectedBytes) == io.EOF
}

// between reports whether the session is between two requests with nothing owed.
func (s *session) between() bool {
	return s.serving == nil && s.parsed == s.filled && s.turn.vectors == 0 && (s.staged == nil || s.staged.failure == nil)
}

// report logs why the session ended.
func (s *session) report(err error) {
	log := s.target.log.With(zap.String("peer", s.peer))
	var rejected *rejection
	switch {
	case err == nil:
		log.Debug("data connection closed")
	case errors.As(err, &rejected):
		level, message := zapcore.InfoLevel, "data request rejected"
		switch {
		case rejected.code == wire.StatusFailed:
			level, message = zapcore.WarnLevel, "data request failed"
		case rejected.region != nil && rejected.region.NoteFault():
			level, message = zapcore.WarnLevel, "data request failed"
			log = log.With(zap.Stringer("region", rejected.region.Range))
		}
		log.Log(level, message, zap.Stringer("operation", rejected.Op),
			zap.String("address", fmt.Sprintf("%#x", rejected.Addr)), zap.Uint64("length", rejected.Length),
			zap.NamedError("reason", rejected.reason))
	case errors.Is(err, errInaccessible):
		log.Warn("data request failed", zap.Error(err))
	case errors.Is(err, errCutShort) && s.target.toTell(s.host):
		log.Warn("data connection lost", zap.Error(err))
	default:
		log.Info("data connection lost", zap.Error(err))
	}
}

// addTo adds the payload that the session has moved.
func (s *session) addTo(link *core.Link) {
	link.BytesIn += s.bytesIn.Load()
	link.BytesOut += s.bytesOut.Load()
}

// end makes the session end soon, from any goroutine. It does not wait.
func (s *session) end(cause error) {
	s.mu.Lock()
	if s.cause == nil {
		s.cause = cause
	}
	if s.staged != nil {
		s.staged.cancel()
	}
	s.mu.Unlock()
	_ = s.conn.SetDeadline(sockio.Past) // fails on a connection that is closed already
}

// ended is why somebody ended the session, or nil.
func (s *session) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// holds is the regions that the session may be moving bytes of, each of them once.
func (s *session) holds() []*core.Region {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := slices.Clone(s.turn.held)
	if s.staged != nil {
		for _, t := range s.staged.queue {
			held = append(held, t.held...)
		}
	}
	slices.SortFunc(held, func(a, b *core.Region) int { return cmp.Compare(a.Addr, b.Addr) })
	return slices.Compact(held)
}

// moves reports whether the session may be moving bytes of the region.
func (s *session) moves(r *core.Region) bool { return slices.Contains(s.holds(), r) }
