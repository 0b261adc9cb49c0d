package server

import (
	"maps"
	"slices"
	"time"

	"kvferry/core"
	"kvferry/core/clock"
	"kvferry/core/metrics"
)

// maxFormerPeers bounds the hosts whose counters are kept after their sessions have ended.
const maxFormerPeers = 256

// host is a host that is or was served.
type host struct {
	counters *metrics.Peer // without the sessions that have not ended
	sessions int           // that have not ended
}

// hostOf finds or makes the counters of a host. If there are too many, hosts are forgotten that are not served. The lock is held.
func (v *Server) hostOf(name string) *host {
	if h := v.hosts[name]; h != nil {
		return h
	}
	for other, h := range v.hosts {
		if len(v.hosts) < maxFormerPeers {
			break
		}
		if h.sessions <= 0 {
			v.shown.Remove(h.counters)
			delete(v.hosts, other)
		}
	}
	h := &host{counters: v.shown.Add(name, clock.Now())}
	v.hosts[name] = h
	return h
}

// Links describes the hosts that are or have been served.
func (v *Server) Links() []core.Link {
	v.mu.Lock()
	defer v.mu.Unlock()
	open := v.openCounts()
	links := make([]core.Link, 0, len(v.hosts))
	for _, name := range slices.Sorted(maps.Keys(v.hosts)) {
		h := v.hosts[name]
		counts, more := h.counters.Counts(), open[h.counters]
		counts.Plus(&more)
		links = append(links, core.Link{
			Peer: name, Transport: "tcp", Direction: core.AsTarget, Connections: h.sessions,
			BytesOut: counts.Bytes(metrics.Read), BytesIn: counts.Bytes(metrics.Write), Errors: counts[metrics.Lost],
		})
	}
	return links
}

// openCounts are the counts of the sessions that have not ended, by host. The lock is held.
func (v *Server) openCounts() map[*metrics.Peer]metrics.PeerCounts {
	open := map[*metrics.Peer]metrics.PeerCounts{}
	for s := range v.sessions {
		counters := v.hosts[s.host].counters
		sum, counts := open[counters], s.countsNow()
		sum.Plus(&counts)
		open[counters] = sum
	}
	return open
}

// loss is the loss of connections of a host.
type loss struct {
	host string
	when time.Duration // by clock.SinceBoot
}

// shouldWarn reports whether the loss of a connection is logged as a warning. A peer that ends loses all its connections at
// once, which is worth one warning.
func (v *Server) shouldWarn(host string) bool {
	const once = 10 * time.Second
	v.mu.Lock()
	defer v.mu.Unlock()
	now := clock.SinceBoot()
	if v.lastLoss.host == host && now-v.lastLoss.when < once {
		return false
	}
	v.lastLoss = loss{host, now}
	return true
}
