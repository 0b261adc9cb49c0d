package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/address"
	"kvferry/core/fair"
	"kvferry/core/metrics"
	"kvferry/core/security"
	"kvferry/core/shut"
	"kvferry/core/status"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// The way of a request:
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

// longestAcceptPause bounds how long the server waits after accept(2) failed, for example for lack of file descriptors.
const longestAcceptPause = time.Second

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

func (s *Server) run() {
	defer s.ended.Done()
	pause := time.Duration(0)
	for !s.isClosed() {
		conn, err := s.listener.AcceptTCP()
		if err == nil {
			pause = 0
			s.admit(conn)
			continue
		}
		if s.isClosed() {
			return
		}
		pause = min(max(2*pause, 5*time.Millisecond), longestAcceptPause)
		s.log.Warn("handshake server cannot accept a connection, and tries again",
			zap.Stringer("listener", s.listener.Addr()), zap.Duration("pause", pause), zap.Error(err))
		s.wait(pause)
	}
}

// admit serves a connection if its address may have one more, or closes it. Where the address has its share in connections
// that are all new, it waits for the end of one as long as its patience lasts, and then closes the oldest.
func (s *Server) admit(conn *net.TCPConn) {
	c := &served{TCPConn: conn}
	place, err := s.door.Admit(fair.AddrOf(conn.RemoteAddr()), func() { s.evict(c) }, s.closed)
	if err != nil {
		shut.Close(conn)
		s.tell("a handshake connection was refused: too many are open", conn, err)
		return
	}
	c.place = place
	s.serve(c)
}

// served is a connection that has a place.
type served struct {
	*net.TCPConn
	place    *fair.Place
	answered atomic.Bool
}

// evict closes a connection whose place another one takes.
func (s *Server) evict(c *served) {
	shut.Close(c.TCPConn)
	if !c.answered.Load() {
		s.tell("a handshake connection without an answer yet was closed to make room for another", c.TCPConn, nil)
	}
}

// tell warns of a connection that found no place, or lost it.
func (s *Server) tell(message string, conn *net.TCPConn, err error) {
	if count, report := s.refused.Add(); report {
		s.log.Warn(message, zap.Stringer("peer", conn.RemoteAddr()), zap.Int("limit", s.options.MaxConnections),
			zap.Int("connections closed since the last such message", count), zap.Error(err))
	}
}

func (s *Server) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// wait returns after a while, or when the server is closed.
func (s *Server) wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.closed:
	}
}

// serve answers a connection in a goroutine of its own, which gives its place back.
func (s *Server) serve(c *served) {
	if !s.keep(c.TCPConn) {
		shut.Close(c.TCPConn)
		s.door.Leave(c.place)
		return
	}
	s.ended.Add(1)
	go func() {
		defer s.ended.Done()
		defer s.leave(c)
		var over stream
		err := status.Guard(func() (err error) {
			over, err = s.answer(c)
			return err
		})
		if err != nil {
			s.report(c.TCPConn, err)
			return
		}
		c.answered.Store(true)
		c.place.SetRank(fair.Idle)
		_ = status.Guard(func() error { return s.awaitClose(c.TCPConn, over) })
	}()
}

// leave closes a connection and gives its place back.
func (s *Server) leave(c *served) {
	s.drop(c.TCPConn)
	s.door.Leave(c.place)
}

// keep notes a connection for Close. It returns false when the server is closed already.
func (s *Server) keep(conn *net.TCPConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

func (s *Server) drop(conn *net.TCPConn) {
	shut.Close(conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// report logs why a connection was closed without an answer. Port scanners and health checks send nothing, and close or
// reset the connection; these and connections that Close ends are logged at the level debug.
func (s *Server) report(conn *net.TCPConn, err error) {
	if errors.Is(err, errNoFrame) || errors.Is(err, errNothingSent) || errors.Is(err, net.ErrClosed) {
		s.log.Debug("a connection without a handshake", zap.Stringer("peer", conn.RemoteAddr()), zap.Error(err))
		return
	}
	s.counts.failed.Add(1)
	s.log.Warn("handshake failed", zap.Stringer("peer", conn.RemoteAddr()), zap.Error(err))
}

// answer reads a request and replies to it. It returns what the request came through.
func (s *Server) answer(conn *served) (stream, error) {
	if err := conn.SetReadDeadline(time.Now().Add(s.options.StepTimeout)); err != nil {
		return nil, err
	}
	over, refuse, err := s.secure(context.Background(), conn.TCPConn)
	if err != nil {
		return nil, err
	}
	request, err := readFrame(over, s.options.MaxLength)
	if err != nil {
		return nil, err
	}
	var body []byte
	if refuse {
		s.counts.plain.Add(1)
		s.log.Warn("a handshake was refused", zap.Stringer("peer", conn.RemoteAddr()), zap.Stringer("request", request.kind), zap.Error(security.ErrPlain))
		body, err = s.refuse(request)
	} else {
		body, err = s.reply(request, caller{fair.AddrOf(conn.RemoteAddr()), conn.LocalAddr(), isSecure(over)})
	}
	if err != nil {
		return nil, err
	}
	if !refuse {
		s.counts.answered[request.kind].Add(1)
	}
	conn.place.SetRank(fair.Spared)
	if err := conn.SetWriteDeadline(time.Now().Add(s.options.StepTimeout)); err != nil {
		return nil, err
	}
	if _, err := over.Write(encodeFrame(request.kind, request.old, body)); err != nil {
		return nil, err
	}
	if err := over.CloseWrite(); err != nil {
		return nil, err
	}
	if !isSecure(over) {
		return over, nil
	}
	if err := conn.CloseWrite(); !errors.Is(err, unix.ENOTCONN) { // the peer has closed it already, after the answer
		return over, err
	}
	return over, nil
}

// caller is the peer of a connection.
type caller struct {
	from    netip.Addr
	reached net.Addr // of this engine
	proven  bool     // it has proven to belong to the cluster
}

// reply reads a request's body and gives the JSON of the answer.
func (s *Server) reply(request frame, by caller) ([]byte, error) {
	if request.kind == kindNotify {
		return s.notify(request, by)
	}
	if err := request.discardBody(); err != nil {
		return nil, err
	}
	switch request.kind {
	case kindMetadata:
		return s.descriptor(by), nil
	case kindProbe:
		return s.probe(), nil
	}
	return mustEncode(connectionBody{QPNumbers: []int{}}), nil
}

// probe names the engine: the port may have been another engine's before.
func (s *Server) probe() []byte {
	answer := probeBody{Status: "success"}
	if s.handlers.Name != "" {
		answer.Extensions = mustEncode(probeExtensions{Name: s.handlers.Name})
	}
	return mustEncode(answer)
}

// connectionBody is the answer to an RDMA handshake: every field that a peer may require, all empty.
type connectionBody struct {
	LocalNICPath string `json:"local_nic_path"`
	PeerNICPath  string `json:"peer_nic_path"`
	QPNumbers    []int  `json:"qp_num"`
	ReplyMessage string `json:"reply_msg"`
}

// notify passes a notification to the handler. A peer that sends no strings gets no answer, as from Mooncake. A body for which
// there is no room is discarded before the answer: a peer reads none before it has sent all.
func (s *Server) notify(request frame, by caller) ([]byte, error) {
	room, err := s.receiving.Enter(by.from, int64(request.length), nil)
	if err != nil {
		return refusedNotification(fmt.Errorf("bytes of notifications that are arriving: %w", err)), request.discardBody()
	}
	defer room.Leave()
	encoded, err := request.readBody()
	if err != nil {
		return nil, err
	}
	var body struct {
		Name *string `json:"name"`
		Text *string `json:"notify_msg"`

		Extensions json.RawMessage `json:"kvferry"` // of notifyRequest; another program may put anything there
	}
	if err := json.Unmarshal(encoded, &body); err != nil {
		return nil, jsonError("notification", err)
	}
	if body.Name == nil || body.Text == nil {
		return nil, malformed("notification without name and notify_msg")
	}
	if err := s.isFor(body.Extensions, by); err != nil {
		return mustEncode(notifyAnswer{Extensions: mustEncode(notifyExtensions{Reason: err.Error(), OtherEngine: true})}), nil
	}
	if err := s.handlers.Notify(Notification{Name: *body.Name, Text: *body.Text}, by.from); err != nil {
		return refusedNotification(err), nil
	}
	return mustEncode(notifyBody{Text: "success"}), nil
}

// isFor returns nil if this is the engine that a notification is for, or it is for none in particular.
func (s *Server) isFor(encoded json.RawMessage, by caller) error {
	var extensions notifyRequest
	if !by.proven || json.Unmarshal(encoded, &extensions) != nil || extensions.For == "" {
		return nil
	}
	if own := s.options.Security.Identity(); extensions.For != own {
		return fmt.Errorf("this is engine %s, and the notification is for engine %.40q", own, extensions.For)
	}
	return nil
}

func refusedNotification(reason error) []byte {
	return mustEncode(notifyAnswer{Extensions: mustEncode(notifyExtensions{Reason: reason.Error()})})
}

// descriptor is the engine's own descriptor, as far as it fits the frame, or null.
func (s *Server) descriptor(by caller) []byte {
	d := s.handlers.Descriptor()
	if d == nil {
		return []byte("null")
	}
	if by.proven {
		named := *d
		named.Names = append(slices.Clone(s.handlers.Names), by.reached.String())
		d = &named
	}
	encoded, truncated := d.Encode(s.options.MaxLength - 1)
	if truncated {
		s.log.Warn("the segment descriptor does not fit a handshake frame, peers see the first buffers only",
			zap.Int("buffers", len(d.Buffers)), zap.Int("MC_HANDSHAKE_MAX_LENGTH", s.options.MaxLength))
	}
	return encoded
}

// awaitClose returns when the peer has closed the connection, or when its time is over. A peer that finds the reply altered says
// so.
func (s *Server) awaitClose(conn *net.TCPConn, over stream) error {
	if err := conn.SetReadDeadline(time.Now().Add(s.options.StepTimeout)); err != nil {
		return err
	}
	_, err := over.Read(make([]byte, 1))
	if security.IsOfTLS(err) {
		s.log.Warn("a peer has not believed the answer to its handshake", zap.Stringer("peer", conn.RemoteAddr()), zap.Error(err))
	}
	return err
}
