// Package client starts the transfers of an engine: it has the queue of each peer, and the connections that take from it.
package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core"
	"kvferry/core/address"
	"kvferry/core/metadata"
	"kvferry/core/security"
	"kvferry/core/status"
	"kvferry/core/trace"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"go.uber.org/zap"
)

// Options are what a client is made of.
type Options struct {
	Config     *core.Config
	Log        *zap.Logger
	Memory     Memory
	Identity   wire.Identity    // of the engine
	Port       int              // of the engine's own data port
	Host       string           // by which peers reach the engine
	Allow      address.Networks // where descriptors may lead; none: anywhere
	SameHost   bool             // peers on this host are reached by their Unix-domain sockets
	Security   *security.Policy // who may be connected to, and by what; nil: everybody
	Congestion sockio.Congestion
	Processors *sockio.Processors
	Limiter    *samehost.CopyLimiter

	Descriptors *sockio.Descriptors // for the connections of the process to peers; nil for no limit
	Trace       *trace.Recorder     // nil for none
	MaxRecords  uint64              // of a connection under TLS in each direction; 0 for sockio.MaxRecords

	StuckTimeout time.Duration // how long a lane may take to end; 0 for stuckTimeout
}

// Memory is what the client needs of a core.Registry.
type Memory interface {
	// Hold keeps a range from being taken back until release is called.
	Hold(r core.Range, why string) (release func())
}

// Client starts the transfers of an engine. Any goroutine may call its methods.
type Client struct {
	Options

	origin      wire.Identity // how targets know this initiator; nobody else learns it
	claimed     atomic.Int64  // connections that have descriptors
	warned      atomic.Int64  // when warnNoDescriptors has logged, by clock.SinceBoot
	connections atomic.Uint64 // numbers the connections that begin with a hello
	fence       fence

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup // every goroutine of the client

	renewing sync.Once // starts keepRenewed

	mu     sync.Mutex
	peers  map[*core.Segment]*peer
	closed bool
}

// New makes a client. It starts no goroutine before the first transfer.
func New(o Options) *Client {
	c := &Client{Options: o, peers: map[*core.Segment]*peer{}}
	_, _ = rand.Read(c.origin[:]) // never fails: see crypto/rand
	c.ctx, c.cancel = context.WithCancel(context.Background())
	o.Descriptors.Join(c)
	c.fence = fence{ctx: c.ctx, running: &c.running, log: o.Log, memory: o.Memory, freed: c.recheck}
	return c
}

// Submit queues works for one segment at its peer.
func (c *Client) Submit(works ...*core.Work) {
	p, err := c.peer(works[0].Segment)
	if err != nil {
		settleAll(works, err)
		return
	}
	p.submit(works)
}

func settleAll(works []*core.Work, err error) {
	for _, w := range works {
		w.Settle(w.Head, 0, w.Bytes, err)
	}
}

// TakesTransfers: see core.Transport.
func (c *Client) TakesTransfers() bool { return true }

func (c *Client) peer(s *core.Segment) (*peer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, status.Errorf(status.Context, "%w", core.ErrClosed)
	}
	if err := s.Removed(); err != nil { // a peer made now would never be forgotten
		return nil, err
	}
	p := c.peers[s]
	if p == nil {
		if c.Security.Mode() != security.Off {
			c.renewing.Do(func() { c.running.Go(c.keepRenewed) })
		}
		p = newPeer(c, s)
		c.peers[s] = p
	}
	return p, nil
}

// known is the peer of a segment, or nil.
func (c *Client) known(s *core.Segment) *peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peers[s]
}

func (c *Client) allPeers() []*peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*peer, 0, len(c.peers))
	for _, p := range c.peers {
		all = append(all, p)
	}
	return all
}

// recheck has the WRITEs queued again that were blocked.
func (c *Client) recheck() {
	for _, p := range c.allPeers() {
		p.recheck()
	}
}

// Abort settles what is held of aborted works.
func (c *Client) Abort() {
	for _, p := range c.allPeers() {
		p.abort()
	}
}

// Expect says that the calling goroutine is about to submit a request to the segment's peer, and to call Assist for it. Until the
// returned function is called, no other goroutine is woken for answers on the lane that sends the request.
func (c *Client) Expect(s *core.Segment) (end func()) {
	if p := c.known(s); p != nil {
		return p.expect()
	}
	return endNothing
}

// Assist receives answers of the segment's peer on the calling goroutine until done reports true, or for a moment.
func (c *Client) Assist(s *core.Segment, done func() bool) {
	if p := c.known(s); p != nil {
		p.assist(done)
	}
}

// Moved is how many bytes have gone over the connections to a segment's owner that are up, in both directions.
func (c *Client) Moved(s *core.Segment) uint64 {
	if p := c.known(s); p != nil {
		return p.moved()
	}
	return 0
}

// Forget drops the connections to a segment's owner.
func (c *Client) Forget(s *core.Segment) {
	c.mu.Lock()
	p := c.peers[s]
	delete(c.peers, s)
	c.mu.Unlock()
	if p != nil {
		p.close(s.Removed())
	}
}

// Links describes the peers.
func (c *Client) Links() []core.Link {
	links := make([]core.Link, 0)
	for _, p := range c.allPeers() {
		links = append(links, p.link())
	}
	return links
}

// Refuse has the client take no more work.
func (c *Client) Refuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

// End ends every connection and settles what is held, soon. It comes after Refuse.
func (c *Client) End() {
	c.cancel()
	for _, p := range c.allPeers() {
		p.close(status.Errorf(status.Context, "%w", core.ErrClosed))
	}
}

// Wait returns when no goroutine of the client is left. It comes after End.
func (c *Client) Wait() {
	c.running.Wait()
	c.Descriptors.Leave(c)
}

// Stuck names the connections that have not ended.
func (c *Client) Stuck() (names []string) {
	for _, p := range c.allPeers() {
		if n := len(p.listed().all); n > 0 {
			names = append(names, fmt.Sprintf("%d to segment %q", n, p.segment.Name))
		}
	}
	return names
}

// nameOf names an engine for an error.
func (c *Client) nameOf(i wire.Identity) string {
	if i == c.Identity {
		return i.String() + ", which is this engine itself"
	}
	return i.String()
}

// hello is the first message to the engine of a descriptor.
func (c *Client) hello(d *metadata.Descriptor, ends uint64) wire.Hello {
	return wire.Hello{Origin: c.origin, Number: c.connections.Add(1), Target: wire.ParseIdentity(d.Identity), Ends: ends}
}

// isOwn reports whether a connection leads to the data port of this engine.
func (c *Client) isOwn(conn *net.TCPConn) bool {
	local, remote := conn.LocalAddr().(*net.TCPAddr), conn.RemoteAddr().(*net.TCPAddr)
	return remote.Port == c.Port && remote.IP.Equal(local.IP)
}
