package fair

import "time"

// GiveWay has one holding give way for something that is not the gate's: the one that would do so for an address that holds
// nothing. Options.Grace is for the holdings of all addresses. It returns false where none may.
func (g *Gate) GiveWay() bool {
	g.mu.Lock()
	s := search{grace: g.root.limits.Grace, now: time.Since(start)}
	victim := s.pick(g.root, func(*node) bool { return true })
	for victim != nil && !victim.claim() { // its rank has changed since
		victim = s.pick(g.root, func(*node) bool { return true })
	}
	if victim != nil {
		g.evicted++
	}
	g.mu.Unlock()
	if victim == nil {
		return false
	}
	victim.evict()
	return true
}
