package client

import (
	"sync/atomic"

	"kvferry/core/metrics"
)

// counters are the figures of a peer.
type counters struct {
	*metrics.Peer
	errors atomic.Uint64 // connections that ended with requests on them, or could not be made
}

// count adds a piece whose bytes have arrived.
func (c *counters) count(piece *piece, path metrics.Path) {
	c.Add(metrics.BytesOf(metrics.Operation(piece.op), path), piece.length)
	piece.work.Went(path)
}

// settled is how many bytes were moved.
func (c *counters) settled() uint64 { return c.Bytes(metrics.Read) + c.Bytes(metrics.Write) }

// state describes the peer now.
func (p *peer) state() (s metrics.PeerState) {
	p.mu.Lock()
	s.Queued = p.queued
	for _, waiting := range [][]piece{p.unverified, p.blocked} {
		for i := range waiting {
			s.Queued += waiting[i].length
		}
	}
	s.Ending = len(p.overtaken)
	all := p.listed().all
	p.mu.Unlock()
	for _, c := range all {
		c.describe(&s)
	}
	return s
}

// describe: see carrier.
func (l *lane) describe(s *metrics.PeerState) {
	l.mu.Lock()
	conn := l.conn
	defer func() {
		l.mu.Unlock()
		addFlow(s, conn)
	}()
	s.InFlight += l.flying.Load()
	switch {
	case l.broken != nil:
		s.Ending++
	case l.conn == nil:
		s.Connecting++
	case l.flight.len() > 0:
		s.Busy++
	default:
		s.Idle++
	}
}

// describe: see carrier.
func (o *oneShot) describe(s *metrics.PeerState) {
	o.mu.Lock()
	conn := o.conn
	defer func() {
		o.mu.Unlock()
		addFlow(s, conn)
	}()
	for i := range o.held {
		s.InFlight += o.held[i].length
	}
	switch {
	case o.broken != nil:
		s.Ending++
	case o.conn == nil:
		s.Connecting++
	default:
		s.Busy++
	}
}

// addFlow adds what the kernel knows of a connection, which may be nil. No lock of the data path is held: the kernel may be busy.
func addFlow(s *metrics.PeerState, conn *connection) {
	if conn != nil {
		flow := conn.Flow()
		s.Flow.Plus(&flow)
	}
}

// States are the peers now.
func (c *Client) States() map[*metrics.Peer]metrics.PeerState {
	states := map[*metrics.Peer]metrics.PeerState{}
	for _, p := range c.allPeers() {
		states[p.Peer] = p.state()
	}
	return states
}

// way is how the payload of a piece has gone that was answered.
func (p *piece) way() metrics.Path {
	if p.byAddress {
		return metrics.Host
	}
	return metrics.TCP
}

// answered counts what a status frame says, and returns the error that it was judged with.
func (c *counters) answered(err error) error {
	if err == errRefused {
		c.Add(metrics.Refusals, 1)
	}
	return err
}
