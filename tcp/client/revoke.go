package client

import (
	"fmt"
	"time"

	"kvferry/core"

	"go.uber.org/zap"
)

// revokePatience is how long a copy that the target makes of local memory is waited for after its connection was given up. A
// copy takes a millisecond at most. A target that is stopped amid it, or waits for a page of this process, may take for ever.
const revokeTimeout = 2 * time.Second

// revoke takes back the permit to copy from this process, before anything that was in flight on the connection is settled,
// and reports whether nothing is copied any more. Otherwise the memory of the pieces is held until the copy has ended, or
// the process that makes it, and what the connection knows of that process is kept until then.
func (p *peer) revoke(conn *connection, unanswered []piece) bool {
	if len(unanswered) == 0 && conn.permit != nil {
		conn.permit.Revoke(0, func() bool { return true }) // nothing of this process is being copied
		return true
	}
	if conn.permit == nil || conn.permit.Revoke(revokeTimeout, func() bool { return !conn.process.Lives() }) {
		return true
	}
	why := fmt.Sprintf("a copy that %v is making, which was given up and does not end: is the process stopped?", conn.process)
	letGo := p.client.hold(unanswered, why)
	p.client.Log.Warn("the memory of transfers that have failed may still be read", zap.String("segment", p.segment.Name), zap.String("by", why))
	p.client.running.Go(func() {
		p.awaitRevocation(conn)
		letGo()
		conn.release()
	})
	return false
}

// awaitRevocation waits for a permit for as long as it takes, or until the transport is closed.
func (p *peer) awaitRevocation(conn *connection) {
	over := func() bool { return p.client.ctx.Err() != nil || !conn.process.Lives() }
	for !conn.permit.Revoke(revokeTimeout, over) {
	}
}

// hold keeps the local memory of pieces from being taken back, until letGo is called.
func (c *Client) hold(pieces []piece, why string) (letGo func()) {
	var all []func()
	for i := range pieces {
		all = append(all, c.Memory.Hold(core.Range{Addr: pieces[i].local, Length: pieces[i].length}, why))
	}
	return func() {
		for _, release := range all {
			release()
		}
	}
}
