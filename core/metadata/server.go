package metadata

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/address"
	"kvferry/core/fair"
	"kvferry/core/metrics"
	"kvferry/core/security"
	"kvferry/core/shut"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The way of a request (server_accept.go, server_answer.go):
//
//  1. run accepts a connection, and admit takes a place for it in the share of its address. When the places are taken, an
//     older connection gives way, those without a request first. So nobody waits for a peer that is silent or slow.
//  2. serve starts a goroutine for the connection. Each of the steps that follow has a deadline.
//  3. answer reads the request. Of a request without content it discards the body.
//  4. It writes the reply, which is of the request's kind, and shuts the write side down.
//  5. awaitClose waits until the peer has closed: closing first might reset the connection before the peer has read the reply.

// Defaults of HandshakeOptions.
const (
	DefaultMaxConnections = 128
	DefaultStepTimeout    = 5 * time.Second
	DefaultMaxReceiving   = 64 << 20
	DefaultPatience       = 250 * time.Millisecond
)

// descriptorsPart is the part of the process's file descriptors that the connections of a server take at most, as a divisor.
const descriptorsPart = 8

// requestGrace is how long a connection has to send its request before another one from its address may take its place
// without having waited.
const requestGrace = time.Second

// tallyPeriod is the shortest time between log lines about connections that gave way or were refused.
const tallyPeriod = 10 * time.Second

// Handlers give the answers of a handshake server. The functions are required. They are called from many goroutines at
// once, and must return soon: closing the server waits for them.
type Handlers struct {
	Name string // of the engine, as peers open it; "": probes are answered without a name
	// Names are further ones by which peers may ask for the engine. Those that have proven to belong to the cluster learn them, and the
	// address that they have reached.
	Names address.Names
	// Descriptor returns the current descriptor, and does not change it afterwards; nil with central metadata.
	Descriptor func() *Descriptor
	// Notify takes a notification from an address, or returns an error to refuse it. The peer learns that and, if it is a
	// kvferry engine, the error's text.
	Notify func(n Notification, from netip.Addr) error
}

// HandshakeOptions bound a handshake server. Zero fields have defaults.
type HandshakeOptions struct {
	MaxLength      int           // longest frame that is taken or sent, in bytes; DefaultMaxLength
	MaxConnections int           // open at once, of which one address has at most half; DefaultMaxConnections. Fewer where the process may have few descriptors
	StepTimeout    time.Duration // for a request to arrive, a reply to leave, a peer to close; DefaultStepTimeout each
	MaxReceiving   int64         // bytes of notifications that are arriving, of which one address has at most half; DefaultMaxReceiving
	Log            *zap.Logger   // nil: none

	Security *security.Policy // who may connect, and by what; nil: everybody

	// Patience is how long the server accepts no connections while those of a burst from one address end; DefaultPatience. It
	// is spent once, and comes back slowly.
	Patience time.Duration
}

// Listener is what a server accepts connections from: a *net.TCPListener or an *address.Listener.
type Listener interface {
	shut.Conn
	AcceptTCP() (*net.TCPConn, error)
	Addr() net.Addr
}

// Server answers handshakes until it is closed.
type Server struct {
	listener Listener
	handlers Handlers
	options  HandshakeOptions
	log      *zap.Logger

	receiving *fair.Gate // the bytes of notifications that are arriving
	door      *fair.Door // one unit for each open connection
	refused   fair.Tally
	counts    serverCounts
	closed    chan struct{}
	ended     sync.WaitGroup // goroutines

	mu    sync.Mutex
	conns map[*net.TCPConn]struct{} // nil once closed
}

// Serve starts a server on a listener, which it closes in the end.
func Serve(l Listener, h Handlers, o HandshakeOptions) *Server {
	o.MaxLength = orDefault(o.MaxLength, DefaultMaxLength)
	o.MaxConnections = min(orDefault(o.MaxConnections, DefaultMaxConnections), fair.ShareOfDescriptors(descriptorsPart))
	o.StepTimeout = orDefault(o.StepTimeout, DefaultStepTimeout)
	o.MaxReceiving = max(orDefault(o.MaxReceiving, DefaultMaxReceiving), 2*int64(o.MaxLength)) // the longest is half at most
	o.Patience = orDefault(o.Patience, DefaultPatience)
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	s := &Server{
		listener: l, handlers: h, options: o, log: sampled(o.Log),
		receiving: fair.New(fair.Options{Limit: o.MaxReceiving}),
		door:      fair.NewDoor(fair.Options{Limit: int64(o.MaxConnections), Grace: requestGrace}, o.Patience),
		refused:   fair.Tally{Period: tallyPeriod},
		closed:    make(chan struct{}), conns: make(map[*net.TCPConn]struct{}),
	}
	s.ended.Add(1)
	go s.run()
	return s
}

// sampled lets through a few messages a second of each text: peers must not be able to fill the log.
func sampled(log *zap.Logger) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(c, time.Second, 3, 0)
	}))
}

// serverCounts are counters of a Server.
type serverCounts struct {
	answered      [unknownKind]atomic.Uint64 // requests, by kind
	plain, failed atomic.Uint64
}

// Stats describes the server now.
func (s *Server) Stats() metrics.Handshakes {
	gate := s.door.Gate.Stats()
	h := metrics.Handshakes{
		Open: gate.Held, Limit: int64(s.options.MaxConnections), Refused: gate.Refused, GaveWay: gate.Evicted,
		Answered: map[string]uint64{}, Plain: s.counts.plain.Load(), Failed: s.counts.failed.Load(),
	}
	for kind := range unknownKind {
		h.Answered[kind.String()] = s.counts.answered[kind].Load()
	}
	return h
}

// Close closes the listener and every connection, and returns when the goroutines of the server have ended. Peers see the
// end at once, also while a forked child has the descriptors. It may be called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	if conns == nil {
		s.ended.Wait()
		return nil
	}
	close(s.closed)
	err := shut.Listener(s.listener)
	for conn := range conns {
		shut.Close(conn)
	}
	s.ended.Wait()
	return err
}
