// Package tcp moves bytes between engines over TCP: it speaks Mooncake's data port, versions 1 and 2, on both sides.
package tcp

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core"
	"kvferry/core/address"
	"kvferry/core/status"
	"kvferry/tcp/samehost"
	"kvferry/tcp/server"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"go.uber.org/zap"
)

// protoVersion is what our data port speaks.
const protoVersion = 2

// Transport is the core.Transport over TCP.
type Transport struct {
	config   *core.Config
	log      *zap.Logger
	memory   *core.Registry
	endpoint core.Endpoint
	target   *server.Server
	sameHost bool // peers on this host are neighbours
	dialing  congestion

	self        wire.Identity // of the engine
	origin      wire.Identity // what its targets know this initiator by; no one else learns it
	connections atomic.Uint64 // numbers the connections that begin with a hello
	quarantines quarantines

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup // every goroutine of the initiator
	ending  time.Duration  // how long Close waits
	ended   chan struct{}  // closed when no goroutine is left

	mu     sync.Mutex
	peers  map[*core.Segment]*peer
	closed bool
}

// Open starts the data port of an engine, and returns the transport. It is a factory for core.Engine.Install.
func Open(e *core.Engine) (core.Transport, error) {
	config := e.Config()
	listener, err := address.Listen(e.Context(), e.ListenHost(), config.MinPort, config.MaxPort, 0)
	if err != nil {
		return nil, err
	}
	t := &Transport{
		config: config, log: e.Log(), memory: e.Memory(), peers: map[*core.Segment]*peer{},
		ending: core.EndingTime, ended: make(chan struct{}),
	}
	t.endpoint = core.Endpoint{Port: listener.Addr().(*net.TCPAddr).Port, ProtoVersion: protoVersion, Hello: wire.HelloVersion}
	t.self = wire.ParseIdentity(e.Identity())
	_, _ = rand.Read(t.origin[:]) // never fails: see crypto/rand
	t.dialing = chosen(config.Congestion, listener, t.log)
	t.sameHost = config.SameHost && !config.ForceTCP
	var local *net.UnixListener
	if t.sameHost {
		if local, t.endpoint.SameHostSocket, err = samehost.Listen(); err != nil {
			t.log.Warn("peers on this host use TCP", zap.Error(err))
		}
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.target = server.New(t.log, e.Memory(), listener, local, server.Options{
		Identity: t.self, MaxSessions: config.MaxSessions, ProgressTimeout: config.ProgressTimeout, Polling: config.Polling,
		Processors: processors, Limiter: copies,
	})
	return t, nil
}

// Endpoint is the data port's.
func (t *Transport) Endpoint() core.Endpoint { return t.endpoint }

// Submit queues the work at its peer.
func (t *Transport) Submit(w *core.Work) {
	p, err := t.peer(w.Segment)
	if err != nil {
		w.Settle(w.Head, 0, w.Bytes, err)
		return
	}
	p.submit(w)
}

func (t *Transport) peer(s *core.Segment) (*peer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, status.Errorf(status.Context, "%w", core.ErrClosed)
	}
	if err := s.Removed(); err != nil { // a peer made now would never be forgotten
		return nil, err
	}
	p := t.peers[s]
	if p == nil {
		p = &peer{transport: t, segment: s, answers: sockio.Spinner{Polling: t.config.Polling}}
		t.peers[s] = p
	}
	return p, nil
}

func (t *Transport) allPeers() []*peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*peer, 0, len(t.peers))
	for _, p := range t.peers {
		all = append(all, p)
	}
	return all
}

// Abort settles what is held of aborted works.
func (t *Transport) Abort() {
	for _, p := range t.allPeers() {
		p.abort()
	}
}

// Assist receives answers of the segment's peer on the calling goroutine until done reports true, or for a moment.
func (t *Transport) Assist(s *core.Segment, done func() bool) {
	t.mu.Lock()
	p := t.peers[s]
	t.mu.Unlock()
	if p != nil {
		p.assist(done)
	}
}

// Moved is how many bytes have gone over the connections to a segment's owner that are up, in both directions.
func (t *Transport) Moved(s *core.Segment) (bytes uint64) {
	t.mu.Lock()
	p := t.peers[s]
	t.mu.Unlock()
	if p != nil {
		for _, c := range p.listed() {
			bytes += c.traffic()
		}
	}
	return bytes
}

// Evict ends the sessions that move bytes of a region.
func (t *Transport) Evict(r *core.Region) { t.target.Evict(r) }

// Holders names the peers whose sessions may be moving bytes of a region.
func (t *Transport) Holders(r *core.Region) []string { return t.target.Holders(r) }

// Forget drops the connections to a segment's owner.
func (t *Transport) Forget(s *core.Segment) {
	t.mu.Lock()
	p := t.peers[s]
	delete(t.peers, s)
	t.mu.Unlock()
	if p != nil {
		p.close(s.Removed())
	}
}

// Links describes the peers on either side.
func (t *Transport) Links() []core.Link {
	links := make([]core.Link, 0)
	for _, p := range t.allPeers() {
		links = append(links, p.link())
	}
	return append(links, t.target.Links()...)
}

// Close ends every connection, settles what is held, and waits for the goroutines. The error names those that are stuck in
// a system call or with a device.
func (t *Transport) Close() error {
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	t.mu.Unlock()
	if first {
		go t.end()
	}
	timer := time.NewTimer(t.ending)
	defer timer.Stop()
	select {
	case <-t.ended:
		return nil
	case <-timer.C:
		return status.Errorf(status.BatchBusy, "connections were closed, but are %w: %s", core.ErrInUse, t.stuck())
	}
}

// end returns when no goroutine is left.
func (t *Transport) end() {
	defer close(t.ended)
	t.cancel()
	for _, p := range t.allPeers() {
		p.close(status.Errorf(status.Context, "%w", core.ErrClosed))
	}
	t.target.Close()
	t.running.Wait()
}

// stuck names the connections that have not ended.
func (t *Transport) stuck() string {
	names := t.target.Stuck()
	for _, p := range t.allPeers() {
		if n := len(p.listed()); n > 0 {
			names = append(names, fmt.Sprintf("%d to segment %q", n, p.segment.Name))
		}
	}
	const most = 8
	switch more := len(names) - most; {
	case len(names) == 0:
		return "some to segments that were removed"
	case more > 0:
		names = append(names[:most], fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, "; ")
}
