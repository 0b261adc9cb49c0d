package server

import (
	"errors"
	"fmt"

	"kvferry/core"
)

// Evict ends, soon, the sessions that move bytes of the region, which takes no new pins by now. It may not be called
// under a lock that PinRemote takes.
func (v *Server) Evict(r *core.Region) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for s := range v.sessions {
		if s.uses(r) {
			s.end(fmt.Errorf("its memory %v is being unregistered", r.Range))
		}
	}
}

// EvictOffer ends, soon, the sessions that use an offer, which gets no new uses by now.
func (v *Server) EvictOffer(o *core.Offer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for s := range v.sessions {
		if s.usesOffer(o) {
			s.end(errOfferRevoked)
		}
	}
}

var errOfferRevoked = errors.New("an offer that it uses is being revoked")

// Holders names the peers whose sessions may be moving bytes of the region.
func (v *Server) Holders(r *core.Region) (names []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for s := range v.sessions {
		if s.uses(r) {
			names = append(names, "a transfer of "+s.peer)
		}
	}
	return names
}

// Stuck describes the sessions that have not ended, with the memory that they may be moving bytes of.
func (v *Server) Stuck() (names []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for s := range v.sessions {
		name := "one from " + s.peer
		for _, r := range s.holds() {
			name += fmt.Sprintf(", memory %v", r.Range)
		}
		names = append(names, name)
	}
	return names
}
