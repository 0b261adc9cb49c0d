// Package server serves registered memory to peers: it accepts connections on the data port, and runs a session on each.
package server

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/fair"
	"kvferry/core/metrics"
	"kvferry/core/security"
	"kvferry/core/shut"
	"kvferry/core/status"
	"kvferry/core/trace"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logLinesPerSecond bounds the log lines of one kind that sessions cause: a peer must not be able to fill the disk.
const logLinesPerSecond = 10

// errClosed ends the sessions of a server that is being closed.
var errClosed = errors.New("the engine is being closed")

// Options are the identity of a server and its limits. All of them must be set, except where a comment says otherwise.
type Options struct {
	Identity        wire.Identity // of the engine
	MaxSessions     int           // connections served at the same time
	FirstRequest    time.Duration // how long a connection may take to send a valid request
	Idle            time.Duration // how long a session is idle before it gives way to a newcomer; may be 0
	ProgressTimeout time.Duration // how long a session waits for the rest of a request, or for room to answer
	StagingRate     int           // bytes per second that a session must move while it holds staging memory that others wait for; may be 0
	Polling         time.Duration // see spin.Spinner; may be 0

	Security   *security.Policy // who may connect, and by what; nil: everybody
	Processors *sockio.Processors
	Limiter    *samehost.CopyLimiter

	Descriptors *sockio.Descriptors // for the sessions of the process; nil for no limit

	MetricsPeers int             // hosts that metrics show by their names
	Trace        *trace.Recorder // nil for none
}

// Listener accepts the connections of the data port.
type Listener interface {
	shut.Conn
	AcceptTCP() (*net.TCPConn, error)
	Addr() net.Addr
}

// Server serves the registered memory of an engine. Any goroutine may call its methods.
type Server struct {
	log      *zap.Logger
	memory   Memory
	listener Listener
	local    *net.UnixListener // for peers on this host; nil for none
	options  Options
	began    time.Duration // by clock.SinceBoot

	accepted    chan sockio.Conn
	gate        *fair.Gate   // of the sessions
	limit       int          // of gate
	seated      atomic.Int64 // sessions that have descriptors
	waitingRoom *fair.Gate   // of accepted connections that have no place
	someWait    atomic.Bool
	placeFree   chan struct{} // has an item when those that wait should try again
	warned      atomic.Int64  // when warnFull has logged, by clock.SinceBoot
	failing     atomic.Bool   // the last accept of a listener failed
	closing     chan struct{}
	ctx         context.Context // ends with closing
	cancel      context.CancelFunc
	running     sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	sessions map[*session]struct{}
	numbered map[connectionKey]*session // those that began with a hello
	hosts    map[string]*host           // that are or were served
	lastLoss loss                       // the last one that was logged as a warning

	shown  *metrics.Peers // of hosts
	counts serverCounts

	polled   atomic.Uint64 // how often sessions that poll have received something
	long     atomic.Int64  // long payloads that are being received or sent; see limited
	watching atomic.Bool   // the timer is set
	timer    *time.Timer   // calls check
}

// New starts to serve. The server owns the listeners from then on. local, for peers on this host, may be nil.
func New(log *zap.Logger, memory Memory, listener Listener, local *net.UnixListener, o Options) *Server {
	v := &Server{
		log: log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
			return zapcore.NewSamplerWithOptions(c, time.Second, logLinesPerSecond, 0)
		})),
		memory:      memory,
		listener:    listener,
		local:       local,
		options:     o,
		began:       clock.SinceBoot(),
		accepted:    make(chan sockio.Conn),
		waitingRoom: fair.New(fair.Options{Limit: maxWaiting}),
		placeFree:   make(chan struct{}, 1),
		closing:     make(chan struct{}),
		sessions:    make(map[*session]struct{}),
		numbered:    make(map[connectionKey]*session),
		hosts:       make(map[string]*host),
		shown:       metrics.NewPeers(o.MetricsPeers),
	}
	o.Trace.Listening(v.began)
	v.gate, v.limit = newGate(o)
	v.ctx, v.cancel = context.WithCancel(context.Background())
	v.timer = time.AfterFunc(time.Hour, v.check)
	v.timer.Stop()
	o.Descriptors.Join(v)
	v.running.Go(v.admit)
	v.running.Go(func() { v.accept(func() (sockio.Conn, error) { return listener.AcceptTCP() }) })
	if local != nil {
		v.running.Go(func() { v.accept(func() (sockio.Conn, error) { return v.acceptLocal() }) })
	}
	if o.Security.Mode() != security.Off {
		v.running.Go(v.keepRechecking)
	}
	return v
}

// Close ends every session, and returns when no session touches registered memory any more. Peers see the end at once, even
// when a forked child has the descriptors.
func (v *Server) Close() {
	v.mu.Lock()
	if !v.closed {
		v.closed = true
		close(v.closing)
		v.cancel()
		v.timer.Stop()
		for s := range v.sessions {
			s.end(errClosed)
		}
	}
	v.mu.Unlock()
	_ = shut.Listener(v.listener) // fails the second time
	if v.local != nil {
		_ = shut.Listener(v.local)
	}
	v.running.Wait()
	v.options.Descriptors.Leave(v)
}

func (v *Server) isClosed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.closed
}

// start serves a connection on a goroutine of its own.
func (v *Server) start(conn sockio.Conn, p *place) {
	v.running.Go(func() {
		s := v.begin(conn, p)
		if s == nil {
			v.vacate(p)
			return
		}
		err := s.run()
		v.forget(s, err)
	})
}

// begin makes the session of a connection; nil where there is to be none.
func (v *Server) begin(conn sockio.Conn, p *place) *session {
	var stream *sockio.Socket
	var by proven
	err := status.Guard(func() (err error) {
		stream, by, err = v.enter(conn, p)
		return err
	})
	if err != nil {
		v.reportRefused(conn, err)
		return nil
	}
	s := newSession(v, stream, p)
	s.identity, s.proven = by.peer.Identity, by
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		stream.Reset()
		_ = s.process.Close()
		return nil
	}
	v.sessions[s] = struct{}{}
	v.hostOf(s.host).sessions++
	v.counts.served.Add(1)
	v.setTimer()
	p.session.Store(s)
	if !p.SetRank(fair.Silent) { // it has given way before there was a session to end
		s.end(errGaveWay)
	}
	return s
}

// forget removes a session that has ended, and keeps its counters.
func (v *Server) forget(s *session, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.sessions, s)
	v.unlist(s)
	close(s.over)
	v.vacate(s.place)
	h := v.hostOf(s.host)
	h.sessions--
	counts := s.countsNow()
	h.counters.AddAll(&counts)
	if err != nil {
		h.counters.Add(metrics.Lost, 1)
	}
	var rejected *rejection
	if errors.As(err, &rejected) {
		h.counters.Add(metrics.Refusals, 1)
	}
}
