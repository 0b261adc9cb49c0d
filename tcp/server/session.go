package server

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/security"
	"kvferry/core/spin"
	"kvferry/core/status"
	"kvferry/core/trace"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"go.uber.org/zap"
)

// A session serves one data connection, on one goroutine, strictly in the order of the requests:
//
//  1. run greets the peer (hello.go) and serves requests until the connection ends.
//  2. nextHeader takes a request from the read-ahead buffer. fill receives more of them (receive.go).
//  3. pin checks the range against the registered regions, and keeps the region from going away (pin.go).
//  4. move moves the payload of a WRITE, and owes the answer: apply and readOut for host memory (hostmem.go), stage for
//     device memory (staged.go), serveByAddress for a request by address (fetch.go). A turn has what is owed (turn.go).
//     moveStrided does so for strided requests (strided.go).
//  5. flush ends the turn: it sends what is owed in one system call, and ends the pins (send.go). That happens when the turn
//     is full, and before the session waits for the peer, so that no answer is withheld.
//  6. finish ends the connection. A rejected peer gets its status first (end.go).
const (
	// turnRequests and turnBytes are what a turn takes.
	turnRequests = 128
	turnBytes    = 256 << 10
)

// errEnded is why a session serves no further request after another goroutine has ended it. session.cause says why it did.
var errEnded = errors.New("the session was ended")

// session is one data connection.
type session struct {
	server *Server
	conn   *sockio.Socket
	peer   string // host:port
	host   string

	process *samehost.Process // of the peer, on one host; nil where its memory is out of reach
	permit  *samehost.Permit  // to copy from it; nil for none

	// Read ahead: the bytes in ahead[parsed:filled] have not been served yet. ahead is first until the peer has proven itself.
	ahead          []byte
	first          [firstAhead]byte
	parsed, filled int
	spinner        spin.Spinner     // for the next request
	jobs           spin.Spinner     // for the job of a turn
	early          int              // bytes of them that receiveOrWait has still to return
	burst          uint64           // bytes of the requests since it last waited for one
	drained        bool             // the last receive took all that there was
	bulk           bool             // the last payload was long
	in             [2]sockio.Vector // for receive
	receives       limited
	sends          limited
	copier         hostmem.Copier
	strided        strided // the last strided request

	turn       *turn
	reads      span         // of the READ payloads owed from host memory
	serving    *core.Region // of the request whose payload has not been applied or owed completely
	pinned     int          // how many of the turn's last pins are of that request
	offersUsed int          // and how many of its uses of offers
	v2         bool         // the last request was of version 2: its peer does not take the end of the connection for success
	staged     *staged      // nil before the first request for device memory
	fetchList  *fetchList   // nil before the first WRITE by address

	trace    *trace.Session // nil for none
	readAt   time.Duration  // for it: when bytes were received last
	onDevice bool           // for it: the memory of the request that is being served is a device's

	place    *place
	began    time.Time
	silent   atomic.Bool // the peer has sent nothing valid
	greeted  bool        // it has sent a hello
	asked    bool        // it has sent a request. Others may look at this, and at greeted, only while the session is resting
	resting  time.Time   // since when it waits for the next request; zero when it does not; under its lock
	offered  bool        // it may give way meanwhile; under its lock
	identity string      // of the peer's engine, as its certificate proves; "" where it does not
	proven   proven      // see recheck.go

	key  connectionKey // of its hello; the number is 0 without one; under the server's lock
	over chan struct{} // closed when the session has ended

	mu     sync.Mutex    // for goroutines that end the session, and for the sender
	cause  error         // why another goroutine ended it
	ending chan struct{} // closed when it has a cause

	// Whether the session, or its sender, waits for the peer in the middle of a request, or with an answer owed.
	waiting, sending atomic.Bool

	progress atomic.Uint64 // bytes moved
	bytesIn  atomic.Uint64 // payload
	bytesOut atomic.Uint64
	fetched  atomic.Uint64 // payload that was copied from the peer's process
	written  atomic.Uint64 // WRITEs whose payload has come
	read     atomic.Uint64 // READs whose payload was sent

	stalledSince time.Time // of Server.check: when it first saw the session wait
	stalledAt    uint64    // with this progress
	slowSince    time.Time // likewise: when it began to measure how fast the session is
	slowAt       uint64    // with this progress
}

func newSession(v *Server, conn *sockio.Socket, p *place) *session {
	s := &session{
		server: v, conn: conn, drained: true, turn: newTurn(), over: make(chan struct{}), ending: make(chan struct{}),
		spinner: spin.Spinner{Contention: v.options.Processors.Contention, Polling: v.options.Polling},
		jobs:    spin.Spinner{Contention: v.options.Processors.Contention},
		place:   p, began: time.Now(),
	}
	s.silent.Store(true)
	s.receives.init(s, func(v []sockio.Vector) (n int, again bool, err error) { return conn.ReceiveNow(v, false) })
	s.sends.init(s, conn.SendNow)
	s.readInto(s.first[:])
	switch remote := conn.Remote.(type) {
	case *net.TCPAddr:
		s.peer, s.host = remote.String(), remote.IP.String()
	case *net.UnixAddr:
		err := conn.Control(func(socket int) (err error) {
			s.process, err = samehost.PeerProcess(socket)
			return err
		})
		if err != nil {
			v.log.Debug("the memory of a peer on this host cannot be read", zap.Error(err))
		}
		s.peer, s.host = s.process.String(), "localhost"
	}
	s.trace = v.options.Trace.Session(s.peer)
	return s
}

// run serves until the connection ends, and closes it. The error says why it ended; it is nil when the peer ended it in good
// order.
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
	if err := s.greet(); err != nil {
		return err
	}
	if s.refusesPlain() {
		return s.refusePlain()
	}
	for {
		h, err := s.nextHeader()
		if err != nil {
			return err
		}
		s.v2 = h.V2
		began := s.readAt
		if err := s.serveOne(h); err != nil {
			return err
		}
		t := s.turn
		if s.trace != nil {
			t.record(s.trace, h, s.onDevice, began, s.readAt)
		}
		t.requests++
		t.bytes += h.Length
		s.burst += h.Length
		if t.requests == turnRequests || t.bytes >= turnBytes || !t.takesVectors() {
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
}

// serveOne serves a request, which counts as one with a long payload meanwhile if it is one: see limited.
func (s *session) serveOne(h wire.Header) error {
	if h.Op == wire.Write && h.Length >= bulkLength && !h.ByAddress {
		s.server.long.Add(1)
		defer s.server.long.Add(-1)
	}
	if h.Strided {
		return s.serveStrided(h)
	}
	return s.serveRequest(h)
}

// serveRequest serves a request that is not strided.
func (s *session) serveRequest(h wire.Header) error {
	region, err := s.pin(h)
	if err = s.admit(h, region, err); err != nil {
		return err
	}
	return s.move(h, region)
}

// serveStrided serves a strided request.
func (s *session) serveStrided(h wire.Header) error {
	if err := s.nextStrided(h); err != nil {
		return err
	}
	region, err := s.pinStrided(&s.strided)
	if err = s.admit(h, region, err); err != nil {
		return err
	}
	return s.moveStrided(&s.strided, region)
}

// admit notes that a request is served, or refuses it. region is its first, and err why it has none.
func (s *session) admit(h wire.Header, region *core.Region, err error) error {
	switch {
	case err == errEnded:
		return err
	case err != nil:
		return refusal(h, err)
	}
	if err := s.prove(); err != nil {
		return err
	}
	s.asked, s.onDevice = true, region.Device != nil
	return nil
}

// refusePlain has the first request refused.
func (s *session) refusePlain() error {
	h, err := s.nextHeader()
	if err != nil {
		return err
	}
	s.v2 = h.V2
	s.server.options.Security.CountPlain(s.conn.Remote)
	return &rejection{Header: h, code: wire.StatusRejected, reason: security.ErrPlain}
}

// move moves the payload of a WRITE, and owes the answer to a request.
func (s *session) move(h wire.Header, region *core.Region) (err error) {
	s.serving = region
	switch {
	case h.ByAddress:
		err = s.serveByAddress(h, region)
	case region.Device != nil:
		err = s.stage(h, region.Device)
	case h.Op == wire.Read:
		err = s.readOut(h, region)
	default:
		err = s.apply(h)
	}
	if err == nil {
		s.serving = nil
		if h.Op == wire.Read && !h.ByAddress {
			s.turn.reads++
		}
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
