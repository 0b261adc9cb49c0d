package tcp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core"
	"kvferry/core/clock"
	"kvferry/core/shut"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// What accept waits when it fails, for want of file descriptors mostly: doubled each time, within these limits.
	shortestAcceptDelay = 5 * time.Millisecond
	longestAcceptDelay  = time.Second

	// Lines of one kind that sessions may log in a second: what a peer can cause must not fill a disk.
	logLinesPerSecond = 10

	// The counters of so many hosts outlast their sessions.
	maxGonePeers = 256

	// How often in a progress timeout stalled sessions are looked for.
	watchTicks = 4
)

// errTargetClosed ends the sessions of a target that is being closed.
var errTargetClosed = errors.New("the engine is being closed")

// targetOptions are what a target is and its limits, all of which must be positive.
type targetOptions struct {
	identity        wire.Identity // of the engine, for hellos
	maxSessions     int           // connections served at the same time; more wait in the listener's backlog
	progressTimeout time.Duration // a session ends when it has waited this long for the rest of a request or for room to answer
	polling         time.Duration // see lookout; may be 0
}

// target serves the registered memory of this process to peers: it accepts connections on the data port and runs a
// session on each. Its methods may be called from any goroutine.
type target struct {
	log      *zap.Logger
	memory   regions
	listener *net.TCPListener
	local    *net.UnixListener // for neighbours; nil where there are to be none
	options  targetOptions
	began    time.Duration // by clock.SinceBoot

	accepted chan sockio.Conn
	slots    chan struct{} // holds an item for each session
	sayFull  sync.Once
	failing  atomic.Bool // nothing could be accepted, the last time, by one of the listeners
	closing  chan struct{}
	ctx      context.Context // ends with closing
	cancel   context.CancelFunc
	running  sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	sessions map[*session]struct{}
	numbered map[connectionKey]*session // those that began with a hello
	gone     map[string]*core.Link      // what sessions that have ended came to, by host
	told     loss                       // the latest that was warned of

	polled   atomic.Uint64 // grows with what sessions receive that poll
	watching atomic.Bool   // the timer is set
	timer    *time.Timer   // calls check
}

// newTarget starts to serve. The listeners are the target's from here on; local, for neighbours, may be nil.
func newTarget(log *zap.Logger, memory regions, listener *net.TCPListener, local *net.UnixListener, o targetOptions) *target {
	t := &target{
		log: log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
			return zapcore.NewSamplerWithOptions(c, time.Second, logLinesPerSecond, 0)
		})),
		memory:   memory,
		listener: listener,
		local:    local,
		options:  o,
		began:    clock.SinceBoot(),
		accepted: make(chan sockio.Conn),
		slots:    make(chan struct{}, o.maxSessions),
		closing:  make(chan struct{}),
		sessions: make(map[*session]struct{}),
		numbered: make(map[connectionKey]*session),
		gone:     make(map[string]*core.Link),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.timer = time.AfterFunc(time.Hour, t.check)
	t.timer.Stop()
	t.running.Go(t.admit)
	t.running.Go(func() { t.accept(func() (sockio.Conn, error) { return listener.AcceptTCP() }) })
	if local != nil {
		t.running.Go(func() { t.accept(func() (sockio.Conn, error) { return local.AcceptUnix() }) })
	}
	return t
}

// close ends every session and returns when nothing touches registered memory any more. Peers find the end at once, also
// while a forked child has the descriptors.
func (t *target) close() {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.closing)
		t.cancel()
		t.timer.Stop()
		for s := range t.sessions {
			s.end(errTargetClosed)
		}
	}
	t.mu.Unlock()
	_ = shut.Listener(t.listener) // fails the second time
	if t.local != nil {
		_ = shut.Listener(t.local)
	}
	t.running.Wait()
}

// admit starts a session for each connection that is accepted, as many as can be served.
func (t *target) admit() {
	for t.takeSlot() {
		select {
		case conn := <-t.accepted:
			t.start(conn)
		case <-t.closing:
			return
		}
	}
}

// accept takes the connections of a listener, one at most beyond those that can be served, and outlives every failure.
func (t *target) accept(next func() (sockio.Conn, error)) {
	delay := shortestAcceptDelay
	for {
		conn, err := next()
		if err == nil {
			delay = shortestAcceptDelay
			t.failing.Store(false)
			select {
			case t.accepted <- conn:
				continue
			case <-t.closing:
				_ = shut.Abandon(conn)
				return
			}
		}
		if t.isClosed() {
			return
		}
		if t.failing.CompareAndSwap(false, true) {
			t.log.Warn("cannot accept data connections; still trying", zap.Error(err))
		}
		select {
		case <-time.After(delay):
		case <-t.closing:
			return
		}
		delay = min(2*delay, longestAcceptDelay)
	}
}

func (t *target) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// takeSlot waits until there may be one more session. It returns false when the target is closed.
func (t *target) takeSlot() bool {
	select {
	case t.slots <- struct{}{}:
		return true
	default:
	}
	t.sayFull.Do(func() {
		t.log.Warn("as many data connections as may be; more have to wait until one ends", zap.Int("limit", cap(t.slots)))
	})
	select {
	case t.slots <- struct{}{}:
		return true
	case <-t.closing:
		return false
	}
}

func (t *target) start(conn sockio.Conn) {
	stream, err := sockio.New(conn, processors)
	if err != nil {
		t.log.Info("a data connection ended as it began", zap.Stringer("peer", conn.RemoteAddr()), zap.Error(err))
		<-t.slots
		return
	}
	s := newSession(t, stream)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		stream.Reset()
		<-t.slots
		return
	}
	t.sessions[s] = struct{}{}
	t.running.Go(func() {
		err := s.run()
		t.forget(s, err)
	})
}

// forget takes a session that has ended off the list and keeps its counters.
func (t *target) forget(s *session, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.sessions, s)
	t.unlist(s)
	close(s.over)
	<-t.slots
	link := t.gone[s.host]
	if link == nil {
		for host := range t.gone {
			if len(t.gone) < maxGonePeers {
				break
			}
			delete(t.gone, host)
		}
		link = newLink(s.host)
		t.gone[s.host] = link
	}
	s.addTo(link)
	if err != nil {
		link.Errors++
	}
}

func newLink(host string) *core.Link {
	return &core.Link{Peer: host, Transport: "tcp", Direction: "target"}
}

// links describes the hosts that are or have been served.
func (t *target) links() []core.Link {
	t.mu.Lock()
	defer t.mu.Unlock()
	byHost := make(map[string]*core.Link, len(t.gone))
	for host, link := range t.gone {
		sum := *link
		byHost[host] = &sum
	}
	for s := range t.sessions {
		if byHost[s.host] == nil {
			byHost[s.host] = newLink(s.host)
		}
		s.addTo(byHost[s.host])
		byHost[s.host].Connections++
	}
	links := make([]core.Link, 0, len(byHost))
	for _, host := range slices.Sorted(maps.Keys(byHost)) {
		links = append(links, *byHost[host])
	}
	return links
}

// evict ends, soon, the sessions that move bytes of the region, which takes no new pins by now. It may not be called
// under a lock that PinRemote takes.
func (t *target) evict(r *core.Region) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.sessions {
		if s.moves(r) {
			s.end(fmt.Errorf("its memory %v is being unregistered", r.Range))
		}
	}
}

// holders names the peers whose sessions may be moving bytes of the region.
func (t *target) holders(r *core.Region) (names []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.sessions {
		if s.moves(r) {
			names = append(names, "a transfer of "+s.peer)
		}
	}
	return names
}

// stuck describes the sessions that have not ended, with the memory that they may be moving bytes of.
func (t *target) stuck() (names []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.sessions {
		name := "one from " + s.peer
		for _, r := range s.holds() {
			name += fmt.Sprintf(", memory %v", r.Range)
		}
		names = append(names, name)
	}
	return names
}

// watch has stalled sessions ended. The timer runs only while some session waits for its peer to go on, and is not set
// anew for each wait.
func (t *target) watch() {
	if t.watching.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setTimer()
}

func (t *target) setTimer() {
	if !t.closed && t.watching.CompareAndSwap(false, true) {
		t.timer.Reset(t.options.progressTimeout / watchTicks)
	}
}

// check ends the sessions that have been waiting without progress for too long.
func (t *target) check() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watching.Store(false) // before it looks: who starts waiting after that sets the timer himself
	now := time.Now()
	for s := range t.sessions {
		if !s.waiting.Load() && !s.sending.Load() {
			s.stalledSince = time.Time{}
			continue
		}
		t.setTimer()
		progress := s.progress.Load()
		if s.stalledSince.IsZero() || progress != s.stalledAt {
			s.stalledSince, s.stalledAt = now, progress
		} else if now.Sub(s.stalledSince) >= t.options.progressTimeout {
			s.end(fmt.Errorf("no byte moved for %v (MC_TCP_PROGRESS_TIMEOUT_SEC)", t.options.progressTimeout))
		}
	}
}

// loss is that connections of a host were lost.
type loss struct {
	host string
	when time.Duration // by clock.SinceBoot
}

// toTell reports whether the loss of a connection is to be warned of: a peer that ends loses all that it has at once.
func (t *target) toTell(host string) bool {
	const once = 10 * time.Second
	t.mu.Lock()
	defer t.mu.Unlock()
	now := clock.SinceBoot()
	if t.told.host == host && now-t.told.when < once {
		return false
	}
	t.told = loss{host, now}
	return true
}
