package server

import (
	"maps"
	"slices"
	"time"

	"kvferry/core"
	"kvferry/core/clock"
)

// maxFormerPeers bounds the hosts whose counters are kept after their sessions have ended.
const maxFormerPeers = 256

func newLink(host string) *core.Link {
	return &core.Link{Peer: host, Transport: "tcp", Direction: core.AsTarget}
}

// Links describes the hosts that are or have been served.
func (v *Server) Links() []core.Link {
	v.mu.Lock()
	defer v.mu.Unlock()
	byHost := make(map[string]*core.Link, len(v.former))
	for host, link := range v.former {
		sum := *link
		byHost[host] = &sum
	}
	for s := range v.sessions {
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
