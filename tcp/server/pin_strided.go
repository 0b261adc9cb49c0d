package server

import (
	"errors"
	"fmt"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/tcp/wire"
)

// The regions of a strided request:
//
//  1. pinStrided pins the one region that holds all runs and the gaps between them.
//  2. Where there is none, pinPart does the same for the parts of the request along its outermost axis, and so on. So runs
//     may lie in several regions, and each run lies in one.
//  3. A part that begins in a region that is pinned, and ends beyond it, is cut without a look-up: regions do not overlap. So
//     where runs alternate between regions, no look-up is made for each.

// maxRegions bounds the regions of a strided request.
const maxRegions = 1024

var (
	errMixed       = errors.New("the runs of a strided request are not all in host memory, or all on one device")
	errBeyond      = errors.New("a part of a strided request ends beyond the region in which it begins")
	errManyRegions = fmt.Errorf("the runs of a strided request are in more than %d regions", maxRegions)
)

// regionsOf are the pins of a strided request: those of its turn from begin on.
type regionsOf struct {
	begin   int
	offered bool         // an offer allows it
	first   *core.Region // the first that holds some of it; nil before
}

// pinStrided pins the regions of a strided request until the turn ends, and returns the first one; see pin.
func (s *session) pinStrided(r *strided) (*core.Region, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return nil, errEnded
	}
	s.offersUsed = 0
	offered := r.key != wire.Key{}
	if offered {
		offer, err := s.server.memory.UseOffer(layout.Key(r.key), r.id, core.Opcode(r.Op), &r.memory)
		if err != nil {
			return nil, err
		}
		s.turn.offers, s.offersUsed = append(s.turn.offers, offer), 1
	}
	found := regionsOf{offered: offered, begin: max(0, len(s.turn.held)-1)} // the region of the last request is often the first one of the next
	if err := s.pinPart(r.Op, &r.memory, &found); err != nil {
		return nil, err
	}
	s.pinned = len(s.turn.held) - found.begin
	return found.first, nil
}

// pinPart pins the regions of a part of a strided request. The lock is held.
func (s *session) pinPart(op wire.Opcode, memory *hostmem.Strided, found *regionsOf) error {
	addr, length := memory.Bounds()
	region, err := s.pinAmong(wire.Header{Op: op, Addr: uint64(addr), Length: length}, found, memory.Count > 0)
	switch {
	case err == nil && found.first == nil:
		found.first = region
		return nil
	case err == nil && region.Device != found.first.Device:
		return errMixed
	case err == nil && len(s.turn.held)-found.begin > maxRegions:
		return errManyRegions
	case err == nil || memory.Count == 0:
		return err
	}
	outer, inner := memory.Axes[0], *memory
	copy(inner.Axes[:], memory.Axes[1:])
	inner.Count--
	for range outer.Count {
		if err := s.pinPart(op, &inner, found); err != nil {
			return err
		}
		inner.Base += uintptr(outer.Stride)
	}
	return nil
}

// pinAmong pins the region of a range, unless it is among those that are pinned. parts says that the range may be cut. The lock
// is held.
func (s *session) pinAmong(h wire.Header, found *regionsOf, parts bool) (*core.Region, error) {
	t := s.turn
	for i := len(t.held) - 1; i >= found.begin; i-- {
		switch r := t.held[i]; {
		case within(r, h) && (found.offered || r.Access.Allows(core.Opcode(h.Op))):
			return r, nil
		case parts && r.Holds(h.Addr, 1) && !within(r, h):
			return nil, errBeyond
		}
	}
	var region *core.Region
	var err error
	if found.offered {
		region, err = s.server.memory.PinOffered(h.Addr, h.Length)
	} else {
		region, err = s.server.memory.PinRemote(h.Addr, h.Length, core.Opcode(h.Op))
	}
	if err == nil {
		t.held = append(t.held, region)
	}
	return region, err
}
