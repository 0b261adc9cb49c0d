package client

import (
	"errors"
	"time"

	"kvferry/core/security"
)

// Lanes under TLS are renewed, while they work:
//
//  1. The keys of a lane are worn when it has carried sockio.MaxRecords (receiveOnce). Or its connection has begun by a secret or a
//     certificate that was replaced since on this side, or that has expired on the other side (keepRenewed).
//  2. renew has the lane take nothing more. Other lanes take over; a new one connects with what is in force now.
//  3. The lane ends when all that it has in flight was answered. If that takes longer than renewTime, the rest is sent again on
//     another lane.

// renewTime is how long a lane that is renewed may take for what it has in flight. The target ends its session after
// server.endGrace, if it does not accept this engine any more.
const renewTime = 4 * time.Second

// errRenewed ends a lane that is renewed.
var errRenewed = errors.New("another connection with new keys takes over")

// keepRenewed renews the lanes that have begun by former secrets or certificates, until the client is closed.
func (c *Client) keepRenewed() {
	ticker := time.NewTicker(security.RecheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
			c.renewStale()
		}
	}
}

func (c *Client) renewStale() {
	c.Security.Generation() // has changed files read
	for _, p := range c.allPeers() {
		for _, l := range p.listed().lanes {
			l.renewIfStale(c.Security)
		}
	}
}

// renewIfStale: see pipelined.
func (l *lane) renewIfStale(by *security.Policy) {
	l.mu.Lock()
	stale := l.conn != nil && l.conn.IsSecure() && !by.IsCurrent(l.conn.proven)
	l.mu.Unlock()
	if stale {
		l.renew()
	}
}

// renew has the lane end soon, and others take over. Any goroutine may call it that holds no lock of the lane but those for writing
// and receiving.
func (l *lane) renew() {
	l.mu.Lock()
	if l.renewing.Load() || l.broken != nil || l.retired {
		l.mu.Unlock()
		return
	}
	l.renewing.Store(true)
	l.renewTimer = time.AfterFunc(renewTime, func() { l.quit(errRenewed) })
	l.mu.Unlock()
	l.source.overtake(l, true)
	l.endIfDone()
}

// endIfDone ends a lane that is renewed when nothing is in flight on it.
func (l *lane) endIfDone() {
	l.mu.Lock()
	done := l.renewing.Load() && l.flight.len() == 0
	l.mu.Unlock()
	if done {
		l.quit(errRenewed)
	}
}
