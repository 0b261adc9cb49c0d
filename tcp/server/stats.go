package server

import (
	"sync/atomic"

	"kvferry/core/clock"
	"kvferry/core/metrics"
	"kvferry/tcp/sockio"
)

// serverCounts are counters of a Server.
type serverCounts struct{ served, refused, failed, foreign atomic.Uint64 }

// Stats describes the hosts that are or were served, and the sessions.
func (v *Server) Stats() ([]metrics.TargetPeer, metrics.Sessions) {
	gate := v.gate.Stats()
	return v.hostStats(), metrics.Sessions{
		Open: gate.Held, Limit: int64(v.limit), Waiting: v.waitingRoom.Held(), GaveWay: gate.Evicted,
		Served: v.counts.served.Load(), Refused: v.counts.refused.Load(), Failed: v.counts.failed.Load(), Foreign: v.counts.foreign.Load(),
	}
}

func (v *Server) hostStats() (all []metrics.TargetPeer) {
	flows := v.flows()
	v.mu.Lock()
	defer v.mu.Unlock()
	open := v.openCounts()
	now := clock.Now()
	sessions := map[string]int{}
	for _, h := range v.hosts {
		if h.sessions > 0 {
			h.counters.Use(now)
			sessions[v.shown.NameOf(h.counters)] += h.sessions
		}
	}
	for _, host := range v.shown.Values(func(p *metrics.Peer) metrics.PeerCounts { return open[p] }) {
		c := &host.Counts
		all = append(all, metrics.TargetPeer{
			Peer: host.Name, Read: c.MovedOf(metrics.Read), Write: c.MovedOf(metrics.Write), Refusals: c[metrics.Refusals],
			Lost: c[metrics.Lost], Connections: sessions[host.Name], Flow: flows[host.Name],
		})
	}
	return all
}

// flows are what the kernel knows of the connections of hosts, by the names that are shown. It is asked without the lock.
func (v *Server) flows() map[string]metrics.Flow {
	conns := map[string][]*sockio.Socket{}
	v.mu.Lock()
	for s := range v.sessions {
		name := v.shown.NameOf(v.hosts[s.host].counters)
		conns[name] = append(conns[name], s.conn)
	}
	v.mu.Unlock()
	flows := make(map[string]metrics.Flow, len(conns))
	for name, all := range conns {
		var sum metrics.Flow
		for _, conn := range all {
			flow := conn.Flow()
			sum.Plus(&flow)
		}
		flows[name] = sum
	}
	return flows
}

// countsNow are the counts of a session so far.
func (s *session) countsNow() (c metrics.PeerCounts) {
	c[metrics.BytesOf(metrics.Write, metrics.TCP)] = s.bytesIn.Load()
	c[metrics.BytesOf(metrics.Read, metrics.TCP)] = s.bytesOut.Load()
	c[metrics.BytesOf(metrics.Write, metrics.Host)] = s.fetched.Load()
	c[metrics.RequestsOf(metrics.Read)] = s.read.Load()
	c[metrics.RequestsOf(metrics.Write)] = s.written.Load()
	return c
}
