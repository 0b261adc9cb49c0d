package core

import (
	"maps"

	"kvferry/core/clock"
	"kvferry/core/metrics"
	"kvferry/core/security"
)

// Stats describes the engine now.
func (e *Engine) Stats() *metrics.Stats {
	s := &metrics.Stats{
		Version: e.version, Engine: e.name, Identity: e.identity, Uptime: (clock.Now() - e.made).Seconds(), Target: []metrics.TargetPeer{},
	}
	e.metrics.Describe(s)
	e.describeBatches(s)
	states := map[*metrics.Peer]metrics.PeerState{}
	for _, t := range e.installed() {
		all := t.Stats()
		maps.Copy(states, all.Initiator)
		s.Target = append(s.Target, all.Target...)
		s.Sessions.Plus(&all.Sessions)
	}
	s.Initiator = e.metrics.DescribePeers(states)
	s.Handshakes = e.server.Stats()
	messages, bytes := e.inbox.waiting()
	s.Notifications.Waiting, s.Notifications.WaitingBytes = uint64(messages), uint64(bytes)
	c := e.policy.Counters()
	s.Security = metrics.Security{
		Mode: e.policy.Mode().String(), Refused: c.Refused, Older: c.Older, Reloads: c.Reloads, FailedReloads: c.FailedReloads,
		NotAllowed: e.notAllowed.Load(), Failures: securityFailures(c.Failures),
	}
	s.Staging = e.devices.describe()
	s.Process = metrics.ReadProcess()
	s.Process.DroppedLogLines = droppedLogLines.Load()
	return s
}

// describeBatches counts what has not ended.
func (e *Engine) describeBatches(s *metrics.Stats) {
	e.batches.Range(func(_, value any) bool {
		b := value.(*Batch)
		if requests := b.ending.Load(); requests > 0 {
			s.Unfinished.Batches++
			s.Unfinished.Requests += uint64(requests)
			s.Unfinished.Bytes += b.bytesOutstanding()
		}
		return true
	})
}

func securityFailures(all []security.Failures) []metrics.SecurityFailures {
	described := make([]metrics.SecurityFailures, len(all))
	for i, f := range all {
		described[i] = metrics.SecurityFailures{Peer: f.Peer, Reason: string(f.Kind), Count: f.Count}
	}
	return described
}
