package server

import (
	"errors"
	"fmt"
	"slices"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/tcp/wire"
)

// The regions of a strided request:
//
//  1. pinStrided pins the one region that holds all runs and the gaps between them.
//  2. Where there is none, pinPart does the same for the parts of the request along the axis with the longest stride, and so
//     on. So runs may lie in several regions, and each run lies in one.
//  3. A part that begins in a region that is pinned, and ends beyond it, is cut without a look-up: regions do not overlap. So
//     where runs alternate between regions, no look-up is made for each. The pins of the request are sorted by address: a peer
//     may send a quarter of a million runs that lie in a thousand regions.

// maxRegions bounds the regions of a strided request.
const maxRegions = 1024

var (
	errMixed       = errors.New("the runs of a strided request are not all in host memory, or all on one device")
	errBeyond      = errors.New("a part of a strided request ends beyond the region in which it begins")
	errManyRegions = fmt.Errorf("the runs of a strided request are in more than %d regions", maxRegions)
)

// regionsOf are the pins of a strided request: those of its turn from begin on, sorted by address.
type regionsOf struct {
	begin   int
	latest  int          // among them: the one that was found last
	offered bool         // an offer allows it
	first   *core.Region // the first that holds some of it; nil before
}

// find returns the pinned region that begins at an address or is the next one below, and the place among the pins behind it. It
// returns nil where there is none.
func (f *regionsOf) find(held []*core.Region, addr uint64) (region *core.Region, behind int) {
	pinned := held[f.begin:]
	if f.latest < len(pinned) && pinned[f.latest].Holds(addr, 1) {
		return pinned[f.latest], f.begin + f.latest + 1
	}
	low, high := 0, len(pinned)
	for low < high {
		if middle := (low + high) / 2; uint64(pinned[middle].Addr) <= addr {
			low = middle + 1
		} else {
			high = middle
		}
	}
	if low == 0 {
		return nil, f.begin
	}
	f.latest = low - 1
	return pinned[f.latest], f.begin + low
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
	memory := r.memory.ByStride()
	if err := s.pinPart(r.Op, &memory, &found); err != nil {
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
	region, behind := found.find(t.held, h.Addr)
	switch {
	case region == nil:
	case within(region, h) && (found.offered || region.Access.Allows(core.Opcode(h.Op))):
		return region, nil
	case parts && region.Holds(h.Addr, 1) && !within(region, h):
		return nil, errBeyond
	}
	var err error
	if found.offered {
		region, err = s.server.memory.PinOffered(h.Addr, h.Length)
	} else {
		region, err = s.server.memory.PinRemote(h.Addr, h.Length, core.Opcode(h.Op))
	}
	if err == nil {
		t.held = slices.Insert(t.held, behind, region)
		found.latest = behind - found.begin
	}
	return region, err
}
