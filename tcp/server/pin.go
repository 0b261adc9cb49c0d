package server

import (
	"cmp"
	"errors"
	"slices"
	"sync/atomic"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// The session's pins: which regions it may be moving bytes of.

// Memory is what sessions need of a core.Registry.
type Memory interface {
	PinRemote(addr, length uint64, op core.Opcode) (*core.Region, error)
	UseOffer(key layout.Key, id uint64, op core.Opcode, memory *hostmem.Strided) (*core.Offer, error)
	PinOffered(addr, length uint64) (*core.Region, error)
	Epoch() *atomic.Uint64
}

// pin finds the region of a request that peers may read or write, as the request asks, and pins it until the turn ends. Evict sees the region from the moment that it is pinned.
// A session that another goroutine has ended pins nothing more, so it does not serve requests that it has read already.
func (s *session) pin(h wire.Header) (*core.Region, error) {
	t := s.turn
	s.pinned, s.offersUsed = 1, 0
	if n := len(t.held); n > 0 && within(t.held[n-1], h) && t.held[n-1].Access.Allows(core.Opcode(h.Op)) {
		return t.held[n-1], nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return nil, errEnded
	}
	region, err := s.server.memory.PinRemote(h.Addr, h.Length, core.Opcode(h.Op))
	if err != nil {
		return nil, err
	}
	t.held = append(t.held, region)
	return region, nil
}

// leaveOffer ends the use of the offer of the request that is served, and returns the offer; nil where it uses none. Nothing
// touches memory of the offer until resumeOffer begins the use again. So a peer that keeps the session waiting keeps nobody from
// revoking the offer.
func (s *session) leaveOffer() *core.Offer {
	if s.offersUsed == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.turn
	last := len(t.offers) - 1
	offer := t.offers[last]
	offer.End()
	t.offers[last] = nil
	t.offers, s.offersUsed = t.offers[:last], 0
	return offer
}

// receiveWithoutOffer receives into the read-ahead buffer, and does not use the offer of the request meanwhile.
func (s *session) receiveWithoutOffer(h wire.Header) error {
	offer := s.leaveOffer()
	if _, err := s.receive(sockio.Vector{}); err != nil {
		return err
	}
	return s.resumeOffer(h, offer)
}

// resumeOffer begins the use of an offer again, nil for none, or refuses the request.
func (s *session) resumeOffer(h wire.Header, offer *core.Offer) error {
	if offer == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return errEnded
	}
	if err := offer.Resume(); err != nil {
		return refusal(h, err)
	}
	s.turn.offers, s.offersUsed = append(s.turn.offers, offer), 1
	return nil
}

// refusal says why a request has no region.
func refusal(h wire.Header, reason error) error {
	code := uint32(wire.StatusRejected)
	switch {
	case errors.Is(reason, core.ErrForbidden):
		code = wire.StatusForbidden
	case errors.Is(reason, core.ErrRevoked):
		code = wire.StatusRevoked
	case errors.Is(reason, core.ErrNotOffered):
		code = wire.StatusNotOffered
	case errors.Is(reason, core.ErrOfferUsed):
		code = wire.StatusOfferUsed
	}
	return &rejection{Header: h, code: code, reason: reason}
}

func within(r *core.Region, h wire.Header) bool { return r.Holds(h.Addr, h.Length) }

// unpin ends the pins of the turn, but for the last ones while they are those of the request being served.
func (s *session) unpin() {
	t := s.turn
	if len(t.held) == 0 && len(t.offers) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := t.held[:0]
	if s.serving != nil {
		slices.Reverse(t.held) // its pins go to the front
		kept = t.held[:s.pinned]
		slices.Reverse(kept)
	}
	for _, r := range t.held[len(kept):] {
		r.Unpin()
	}
	clear(t.held[len(kept):])
	t.held = kept
	used := 0
	if s.serving != nil {
		used = s.offersUsed
	}
	t.endOffers(used)
}

// holds returns the regions that the session may be moving bytes of, each of them once.
func (s *session) holds() []*core.Region {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := slices.Clone(s.turn.held)
	if s.staged != nil {
		for _, t := range s.staged.queue {
			held = append(held, t.held...)
		}
	}
	slices.SortFunc(held, func(a, b *core.Region) int { return cmp.Compare(a.Addr, b.Addr) })
	return slices.Compact(held)
}

// uses reports whether the session may be moving bytes of the region.
func (s *session) uses(r *core.Region) bool { return slices.Contains(s.holds(), r) }

// usesOffer reports whether the session serves a request by an offer.
func (s *session) usesOffer(o *core.Offer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := slices.Contains(s.turn.offers, o)
	if s.staged != nil {
		for _, t := range s.staged.queue {
			used = used || slices.Contains(t.offers, o)
		}
	}
	return used
}

// regionOf is the region that holds the payload of a READ which is owed, for an error; nil when it is not known any more.
func (s *session) regionOf(h wire.Header) *core.Region {
	for _, r := range s.holds() {
		if within(r, h) {
			return r
		}
	}
	return nil
}
