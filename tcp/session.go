package tcp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core"
	"kvferry/core/status"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// A session serves one data connection, on one goroutine, strictly in the order of the requests:
//
//  1. nextHeader takes a request from the read-ahead buffer; fill receives as many more as have arrived.
//  2. pin checks the range against the registered regions and keeps the region from going away.
//  3. WRITE: apply copies what was read ahead of the payload into the region and receives the rest in place, in the
//     same system call as what follows it. Then it owes a status frame.
//  4. READ: readOut owes a status frame and the payload, which stays in the region until it is sent.
//  5. flush sends what is owed in one system call and ends the pins: when the session would wait for the peer, so that
//     nothing is withheld from it, and at the latest when a turn is full.
//  6. finish ends the connection. A rejected peer gets its status first.
//
// Memory of a device needs no more than an apply and a readOut of its own, which move the payload in chunks through
// staging blocks, and owe the status when the copies have finished.
const (
	// A turn is what is served between two flushes.
	turnRequests = 128
	turnBytes    = 256 << 10

	// Payload of up to readAhead bytes is copied from the read-ahead buffer when it is there: cheaper than system calls.
	readAhead = 64 << 10

	// Payload of bulkLength or more is received in place, and only bulkReadAhead bytes of what follows it are read
	// ahead, since that is probably as long.
	bulkLength    = 32 << 10
	bulkReadAhead = 1 << 10

	// After a request of at most shortRequest bytes that came alone, a session looks for the next one for lookAheadTime:
	// about what a peer needs to take its answer and ask again.
	shortRequest  = 64 << 10
	lookAheadTime = 50 * time.Microsecond

	// A peer that was rejected while it was sending has to get around to reading the status. Until then what it sends
	// is thrown away: closing would reset the connection, and the status might be lost.
	rejectedTime  = time.Second
	rejectedBytes = 16 << 20
)

// errInaccessible is about memory that its owner has unmapped, or protected, without unregistering it first.
var errInaccessible = errors.New("registered memory cannot be accessed")

// regions is what sessions need of a core.Registry.
type regions interface {
	PinRemote(addr, length uint64) (*core.Region, error)
}

type session struct {
	target *target
	conn   *net.TCPConn
	socket *socket
	peer   string // host:port
	host   string

	// Read ahead: the bytes in ahead[parsed:filled] have not been served yet.
	ahead          [readAhead]byte
	parsed, filled int
	next           lookout
	emptied        bool        // the last receive took all that there was
	bulk           bool        // the last payload was long
	in             [2]ioVector // for receive

	// The turn. Vectors in owed point into statuses and into held regions.
	requests    int
	bytes       uint64 // applied or owed
	owed        [2 * turnRequests]ioVector
	vectors     int
	statuses    [turnRequests * statusSize]byte
	statusesEnd int
	readLow     uint64 // the READ payloads owed lie within
	readHigh    uint64 // [readLow, readHigh)
	readBytes   uint64
	writing     *core.Region // of the WRITE whose payload has not been applied completely

	mu    sync.Mutex // for whoever ends the session
	held  []*core.Region
	cause error // why somebody else ended it

	waiting  atomic.Bool   // for a peer that has to move on: not at the end of a request with nothing owed
	progress atomic.Uint64 // grows whenever bytes move
	bytesIn  atomic.Uint64 // payload
	bytesOut atomic.Uint64

	stalledSince time.Time // of target.check: when it first saw the session wait
	stalledAt    uint64    // with this progress
}

// rejection ends a session whose peer asked for what it cannot have.
type rejection struct {
	header
	reason error
}

func (r *rejection) Error() string {
	return fmt.Sprintf("rejected a %v of %d bytes at %#x: %v", r.op, r.length, r.addr, r.reason)
}

func (r *rejection) Unwrap() error { return r.reason }

func newSession(t *target, conn *net.TCPConn) (*session, error) {
	socket, err := newSocket(conn)
	if err != nil {
		return nil, err
	}
	remote := conn.RemoteAddr().(*net.TCPAddr)
	return &session{
		target:  t,
		conn:    conn,
		socket:  socket,
		peer:    remote.String(),
		host:    remote.IP.String(),
		emptied: true,
		held:    make([]*core.Region, 0, turnRequests+1),
	}, nil
}

// run serves until the connection ends, and closes it. The error is why it ended, nil when the peer wanted it to.
func (s *session) run() error {
	err := status.Guard(s.serve)
	err = s.finish(err)
	s.writing = nil
	s.unpin()
	return err
}

// serve returns io.EOF when the peer closed the connection between two requests and has been answered.
func (s *session) serve() error {
	for {
		h, err := s.nextHeader()
		if err != nil {
			return err
		}
		region, err := s.pin(h)
		if err != nil {
			return &rejection{h, err}
		}
		if h.op == core.Read {
			s.readOut(h)
		} else if err := s.apply(h, region); err != nil {
			return err
		}
		s.requests++
		s.bytes += h.length
		if s.requests == turnRequests || s.bytes >= turnBytes {
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
}

func (s *session) nextHeader() (header, error) {
	for s.filled-s.parsed < headerSize {
		err := s.fill()
		if err == io.EOF && s.filled > s.parsed {
			err = fmt.Errorf("the peer closed the connection after %d of %d bytes of a request header: %w",
				s.filled-s.parsed, headerSize, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return header{}, err
		}
	}
	b := s.ahead[s.parsed:]
	s.parsed += headerSize
	return parseHeader(b)
}

// fill adds to what is read ahead, which is less than a header.
func (s *session) fill() error {
	s.filled = copy(s.ahead[:], s.ahead[s.parsed:s.filled])
	s.parsed = 0
	_, err := s.receive(ioVector{})
	return err
}

// receive receives into place and, beyond it, into the read-ahead buffer. It returns how many bytes went to place.
func (s *session) receive(place ioVector) (placed uint64, err error) {
	v := s.in[:0]
	if place.length > 0 {
		v = append(v, place)
	}
	window := s.ahead[s.filled:]
	if s.bulk {
		window = window[:min(len(window), bulkReadAhead)]
	}
	v = append(v, vectorOf(window))

	n, err := s.receiveOrWait(v)
	if err != nil {
		return 0, err
	}
	s.progress.Add(1)
	s.emptied = uint64(n) < place.length+uint64(len(window))
	placed = min(uint64(n), place.length)
	s.filled += n - int(placed)
	return placed, nil
}

// receiveOrWait sends what is owed before it waits, and before it returns io.EOF. Once a receive has emptied the socket
// buffer waiting is likely, and flushing first saves the vain system call.
func (s *session) receiveOrWait(v []ioVector) (int, error) {
	if !s.emptied && s.vectors > 0 {
		n, again, err := s.socket.tryReceive(v)
		if !again && err != io.EOF {
			return n, err
		}
	}
	alone := s.requests == 1 && s.bytes <= shortRequest && s.writing == nil && s.filled == 0
	if err := s.flush(); err != nil {
		return 0, err
	}
	if alone {
		if n, again, err := s.lookAhead(v); !again {
			return n, err
		}
	}
	s.await(s.writing != nil || s.filled > 0)
	return s.socket.receive(v)
}

// lookAhead looks for the next request of a peer that sends short ones, each when the last is answered.
func (s *session) lookAhead(v []ioVector) (n int, again bool, err error) {
	again = true
	s.next.look(lookAheadTime, func() bool {
		n, again, err = s.socket.tryReceive(v)
		return !again
	})
	return n, again, err
}

// await tells the target's watch whether the wait that follows is for the rest of something.
func (s *session) await(rest bool) {
	s.waiting.Store(rest)
	if rest {
		s.target.watch()
	}
}

// pin finds the region of a request and pins it until the turn ends. Pinning and making it known to evict are one step.
func (s *session) pin(h header) (*core.Region, error) {
	if n := len(s.held); n > 0 && within(s.held[n-1], h) {
		return s.held[n-1], nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	region, err := s.target.memory.PinRemote(h.addr, h.length)
	if err != nil {
		return nil, err
	}
	s.held = append(s.held, region)
	return region, nil
}

func within(r *core.Region, h header) bool {
	base := uint64(r.Addr)
	return h.length > 0 && h.length <= r.Length && h.addr >= base && h.addr-base <= r.Length-h.length
}

// unpin ends the pins of the turn, but for that of the region being written.
func (s *session) unpin() {
	if len(s.held) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.held[:0]
	for _, r := range s.held {
		if r == s.writing && len(kept) == 0 {
			kept = append(kept, r)
		} else {
			r.Unpin()
		}
	}
	clear(s.held[len(kept):])
	s.held = kept
}

// apply moves the payload of a WRITE into its region.
func (s *session) apply(h header, region *core.Region) error {
	if s.readBytes > 0 && h.addr < s.readHigh && s.readLow < h.addr+h.length {
		if err := s.flush(); err != nil { // the READ came first, and gets what was there before
			return err
		}
	}
	s.writing = region
	s.bulk = h.length >= bulkLength
	left := ioVector{uintptr(h.addr), h.length}
	buffered := min(uint64(s.filled-s.parsed), left.length)
	if err := core.CopyMemory(left.base, addressOf(s.ahead[s.parsed:]), buffered); err != nil {
		return &rejection{h, fmt.Errorf("%w: %w", errInaccessible, err)}
	}
	s.parsed += int(buffered)
	for placed := buffered; placed < left.length; {
		left.base += uintptr(placed)
		left.length -= placed
		s.parsed, s.filled = 0, 0
		var err error
		placed, err = s.receive(left)
		switch {
		case err == io.EOF:
			return fmt.Errorf("the peer closed the connection with %d bytes of a WRITE of %d at %#x missing: %w",
				left.length, h.length, h.addr, io.ErrUnexpectedEOF)
		case errors.Is(err, unix.EFAULT):
			return &rejection{h, fmt.Errorf("%w: %w", errInaccessible, err)}
		case err != nil:
			return err
		}
	}
	s.writing = nil
	s.bytesIn.Add(h.length)
	if h.v2 {
		s.oweStatus(statusOK)
	}
	return nil
}

// readOut owes the answer to a READ.
func (s *session) readOut(h header) {
	s.bulk = false
	if s.readBytes == 0 {
		s.readLow, s.readHigh = h.addr, h.addr
	}
	s.readLow = min(s.readLow, h.addr)
	s.readHigh = max(s.readHigh, h.addr+h.length)
	s.readBytes += h.length
	if h.v2 {
		s.oweStatus(statusOK)
	}
	s.owe(uintptr(h.addr), h.length)
}

func (s *session) oweStatus(code uint32) {
	b := s.statuses[s.statusesEnd : s.statusesEnd+statusSize]
	s.statusesEnd += statusSize
	putStatus(b, code)
	s.owe(addressOf(b), statusSize)
}

func (s *session) owe(base uintptr, length uint64) {
	s.vectors = len(extend(s.owed[:s.vectors], base, length)) // in place: a turn owes no more than there is room for
}

// flush ends the turn.
func (s *session) flush() error {
	for v := s.owed[:s.vectors]; len(v) > 0; {
		n, again, err := s.socket.trySend(v)
		if again {
			s.await(true)
			n, err = s.socket.send(v)
		}
		if errors.Is(err, unix.EFAULT) {
			return fmt.Errorf("%w: the last %d bytes of a READ, at %#x: %w", errInaccessible, v[0].length, v[0].base, err)
		}
		if err != nil {
			return err
		}
		s.progress.Add(1)
		v = advance(v, n)
	}
	s.bytesOut.Add(s.readBytes)
	s.requests, s.bytes, s.vectors, s.statusesEnd, s.readBytes = 0, 0, 0, 0, 0
	s.unpin()
	return nil
}

// finish closes the connection and returns why, unless the peer wanted it to or the engine is being closed. A peer that
// sent a WRITE without asking for a status takes an orderly close for success, so that is only for connections where
// nothing was left undone; the others are reset.
func (s *session) finish(err error) error {
	var rejected *rejection
	orderly := false
	switch cause := s.ended(); {
	case err == io.EOF:
		orderly, err = true, nil
	case errors.As(err, &rejected):
		orderly = s.refuse(rejected)
	case cause != nil:
		orderly, err = s.between(), cause
	}
	if !orderly {
		_ = s.conn.SetLinger(0) // fails on a connection that is reset already
	}
	_ = s.conn.Close()
	if err == errTargetClosed {
		err = nil
	}
	s.report(err)
	return err
}

// refuse sends what is owed for the requests before the rejected one and, where the peer understands it, the reason.
// It reports whether the peer has read all that and closed its side.
func (s *session) refuse(r *rejection) bool {
	s.writing = nil
	if r.v2 {
		s.oweStatus(statusRejected)
	}
	if s.flush() != nil || !r.v2 || s.conn.CloseWrite() != nil {
		return false
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(rejectedTime))
	if s.ended() != nil { // by a deadline that has just been overwritten
		return false
	}
	scratch := []ioVector{vectorOf(s.ahead[:])}
	for dropped := 0; dropped < rejectedBytes; {
		n, err := s.socket.receive(scratch)
		if err != nil {
			return err == io.EOF
		}
		dropped += n
	}
	return false
}

// between reports whether the session is between two requests with nothing owed.
func (s *session) between() bool {
	return s.writing == nil && s.parsed == s.filled && s.vectors == 0
}

// report logs why the session ended.
func (s *session) report(err error) {
	log := s.target.log.With(zap.String("peer", s.peer))
	var rejected *rejection
	switch {
	case err == nil:
		log.Debug("data connection closed")
	case errors.Is(err, errInaccessible):
		log.Warn("data request failed", zap.Error(err))
	case errors.As(err, &rejected):
		log.Info("data request rejected", zap.Stringer("operation", rejected.op),
			zap.String("address", fmt.Sprintf("%#x", rejected.addr)), zap.Uint64("length", rejected.length),
			zap.NamedError("reason", rejected.reason))
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
	s.mu.Unlock()
	_ = s.conn.SetDeadline(past) // fails on a connection that is closed already
}

// ended is why somebody ended the session, or nil.
func (s *session) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// moves reports whether the session may be moving bytes of the region.
func (s *session) moves(r *core.Region) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.held, r)
}
