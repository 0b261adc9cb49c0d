package client

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core"
	"kvferry/core/metrics"
	"kvferry/core/spin"
)

// The way of a request on the initiator:
//
//  1. submit queues a work as a cursor, and dispatch ensures that there are carriers for the queue: lanes to a peer that
//     acknowledges (version 2), otherwise one-shot carriers (dispatch.go).
//  2. A carrier takes pieces from the queue as fast as it can send them (take.go). Cursors take turns, so that a short batch
//     does not wait for a long one before it.
//  3. A carrier settles what was acknowledged (lane.go, oneshot.go). What was in flight on a carrier that broke comes back:
//     ended queues it again, up to MC_RETRY_CNT times (ended.go).
//  4. A range that the peer refused, or that its descriptor does not show, is unverified: the descriptor is fetched again, and
//     the piece is queued once more or fails (revalidate.go).
//  5. A WRITE to a range that a former connection may still write to waits until that connection is known to be over
//     (blocked.go, fence.go).

// peer is the owner of a segment, as the initiator sees it.
type peer struct {
	environment
	client *Client

	mu           sync.Mutex
	cursors      []*cursor // the first is next
	returned     []piece   // to be sent again, before the cursors
	queued       uint64    // bytes in cursors, returned and aside
	lastStaged   bool      // the work that was queued last comes in parts (core.Work.Staged)
	lastReading  bool      // the work that was queued last is a READ
	turn         uint64    // bytes that the first cursor has given since it is first
	distance     distance
	encrypted    bool      // payload is encrypted on the way
	reserved     time.Time // until when the first lane is for short works
	unverified   []piece   // wait for the descriptor
	resolving    bool      // a goroutine runs resolve
	round        int32     // how often the descriptor was fetched for unverified pieces
	checked      bool      // every range is looked up in the descriptor: the peer checks none, or has refused one
	blocked      []piece   // WRITEs that wait for former connections to be over
	rechecking   bool      // a timer is going to queue them again
	overtaken    []carrier // take nothing more, and have not ended; see lane_stuck.go
	lossesInARow int       // connections lost under work in a row without a piece settled
	settledThen  uint64    // bytes settled when a connection was last lost
	unconfirmed  bool      // a connection was lost: the peer may have restarted, so its descriptor is to be fetched again
	closed       error     // why it takes nothing more

	// Also under the lock: works whose pages a carrier in overtaken waits for. Nothing else is taken of them; see lane_stuck.go.
	heldUp map[carrier][]*core.Work

	// Also under the lock: the carrier that may wait for a page while others do, and what was set aside meanwhile; see cautious.go.
	touching carrier
	aside    []aside
	again    int // so many of them, from the first on, are to be looked at again

	carriers atomic.Pointer[carriers] // replaced under the lock
	lastHost atomic.Pointer[string]   // the host at which the data port was found the last time
	onHost   atomic.Pointer[string]   // the identity of the engine on this host that is known to have given its descriptor
	answers  spin.Spinner
}

// newPeer makes the peer of a segment.
func newPeer(c *Client, s *core.Segment) *peer {
	return &peer{
		client: c,
		environment: environment{
			ctx: c.ctx, config: c.Config, segment: s, limiter: c.Limiter, fence: &c.fence, stuckTimeout: c.StuckTimeout,
			counters: counters{Peer: s.Counters()},
		},
		answers: spin.Spinner{Contention: c.Processors.Contention, Polling: c.Config.Polling},
	}
}

// submit queues works, and then has lanes woken for all of them together.
func (p *peer) submit(works []*core.Work) {
	p.mu.Lock()
	if p.closed != nil {
		p.mu.Unlock()
		settleAll(works, p.closed)
		return
	}
	for _, w := range works {
		p.enqueue(w)
	}
	first := works[0]
	mayWrite := (!first.Staged || p.lastReading) && first.Transfer == nil // a READ request takes no time to send
	p.mu.Unlock()
	p.dispatch(mayWrite)
}

// enqueue queues a work. The lock is held.
func (p *peer) enqueue(w *core.Work) {
	p.cursors = append(p.cursors, newCursor(w))
	p.queued += w.Bytes
	p.lastStaged, p.lastReading = w.Staged, w.Tasks[w.Head].Opcode == core.Read
	p.limiter.Note(w.Bytes)
	if w.Bytes <= shortWork && p.allBusy() {
		p.reserved = time.Now().Add(reserveTime)
	}
}

// abort settles what is queued of aborted works, and ends the carriers that hold pieces of them.
func (p *peer) abort() {
	p.mu.Lock()
	carriers := append(slices.Clone(p.listed().all), p.overtaken...)
	p.aside = slices.DeleteFunc(p.aside, func(a aside) bool {
		gone := a.piece.work.Aborted() != nil
		if gone {
			p.unset(a)
		}
		return gone
	})
	p.again = min(p.again, len(p.aside))
	p.cursors = slices.DeleteFunc(p.cursors, func(c *cursor) bool {
		err := c.work.Aborted()
		if err != nil {
			p.queued -= c.left
			c.settleRest(err)
		}
		return err != nil
	})
	var settled uint64
	p.returned, settled = settleAborted(p.returned)
	p.queued -= settled
	p.unverified, _ = settleAborted(p.unverified)
	p.blocked, _ = settleAborted(p.blocked)
	p.mu.Unlock()
	for _, c := range carriers {
		if c.carriesAborted() {
			c.quit(errAborted)
		}
	}
}

// close fails everything that the peer holds or gets from now on.
func (p *peer) close(reason error) {
	p.mu.Lock()
	p.closed = reason
	p.failQueue(reason)
	for _, piece := range p.unverified {
		piece.settle(cmp.Or(piece.work.Aborted(), reason))
	}
	p.unverified = nil
	carriers := append(slices.Clone(p.listed().all), p.overtaken...)
	p.mu.Unlock()
	for _, c := range carriers {
		c.quit(reason)
	}
}

// link describes the peer.
func (p *peer) link() core.Link {
	return core.Link{
		Peer: p.segment.Name, Transport: "tcp", Direction: core.AsInitiator, Connections: len(p.listed().all),
		BytesOut: p.Bytes(metrics.Write), BytesIn: p.Bytes(metrics.Read), Errors: p.errors.Load(),
	}
}

// moved is how many bytes have gone over the connections that are up.
func (p *peer) moved() (bytes uint64) {
	for _, c := range p.listed().all {
		bytes += c.traffic()
	}
	return bytes
}

// listed is the carriers. It may be called without the lock.
func (p *peer) listed() *carriers {
	if l := p.carriers.Load(); l != nil {
		return l
	}
	return &carriers{}
}

// errNotCarried says that a piece is not for the carrier that has taken it.
var errNotCarried = errors.New("the piece may not go to the engine that answers")

// connect: see source.
func (p *peer) connect(ctx context.Context, only *piece) (*connection, error) {
	free, err := p.client.claim(ctx, p)
	if err != nil {
		return nil, err
	}
	conn, err := p.dial(ctx)
	if err != nil {
		free()
		if ctx.Err() == nil {
			p.Add(metrics.Unreachable, 1)
		}
		return nil, err
	}
	conn.free = free
	p.Add(metrics.Connected, 1)
	p.segment.NoteAddress(conn.Remote)
	switch {
	case only != nil && p.mayCarry(conn, only):
		return conn, nil
	case only != nil:
		conn.discard()
		return nil, errNotCarried
	case !p.pipelined(conn.owner):
		_ = conn.Close()
		conn.release()
		return nil, errOutdated
	}
	p.connected(distanceOf(conn.RoundTrip(), conn.IsLocal()), conn.IsSecure() && !conn.IsLocal())
	return conn, nil
}
