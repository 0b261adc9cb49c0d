package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"kvferry/core/clock"
	"kvferry/core/status"
	"kvferry/tcp/sockio"

	"go.uber.org/zap"
)

// Connections to peers take a share of the process's descriptors at most:
//
//  1. A peer that has a carrier gets more only while there is room for them (startCarriers).
//  2. claim takes the descriptors of a connection before it is made. Where none are left it ends a lane of another peer that has
//     been idle for longest, or has another engine of the process do so, and waits.
//  3. The connection gives them back when it is closed.

// errNoDescriptors is why a peer that has no connection gets none.
var errNoDescriptors = errors.New("connections to other peers have all the descriptors that they may: raise RLIMIT_NOFILE")

const (
	connectionDescriptors = sockio.PerConnection
	// claimPause is how long claim waits until it looks for an idle lane again.
	claimPause = 20 * time.Millisecond
)

// claim takes the descriptors of a connection to a peer, and waits for them for as long as a connection may take.
func (c *Client) claim(ctx context.Context, p *peer) (free func(), err error) {
	ctx, done := context.WithTimeout(ctx, c.Config.HandshakeConnectTimeout)
	defer done()
	for !c.Descriptors.Take(connectionDescriptors) {
		c.warnNoDescriptors()
		if !c.endIdleLane(p) {
			c.Descriptors.MakeRoom()
		}
		select {
		case <-time.After(claimPause):
		case <-ctx.Done():
			return nil, status.Errorf(status.Socket, "segment %q: %w", p.segment.Name, errNoDescriptors)
		}
	}
	c.claimed.Add(1)
	return sync.OnceFunc(func() {
		c.Descriptors.Give(connectionDescriptors)
		c.claimed.Add(-1)
	}), nil
}

// Connections is the number of connections to peers. None of them is known to end soon.
func (c *Client) Connections() (all, ending int) { return int(c.claimed.Load()), 0 }

// GiveWay ends the lane that has been idle for longest, for a connection of another engine of the process.
func (c *Client) GiveWay() bool { return c.endIdleLane(nil) }

// endIdleLane ends the lane that has been idle for longest, but for those of a peer. It returns false where there is none.
func (c *Client) endIdleLane(but *peer) bool {
	var oldest pipelined
	var since time.Time
	for _, p := range c.allPeers() {
		if p == but {
			continue
		}
		for _, l := range p.listed().lanes {
			if used, idle := l.lastUsed(); idle && (oldest == nil || used.Before(since)) {
				oldest, since = l, used
			}
		}
	}
	if oldest != nil {
		oldest.quit(errIdle)
	}
	return oldest != nil
}

// warnNoDescriptors logs, once in a while, that connections are too many.
func (c *Client) warnNoDescriptors() {
	const pause = int64(time.Minute)
	now, last := int64(clock.SinceBoot()), c.warned.Load()
	if (last == 0 || now-last >= pause) && c.warned.CompareAndSwap(last, now) {
		c.Log.Warn("connections to peers have all the descriptors that they may; idle ones end, and others wait",
			zap.String("raise", "RLIMIT_NOFILE"))
	}
}
