package staging

import (
	"cmp"
	"slices"

	"kvferry/core/device"
)

// Which moves are gathered together. See planner.

// group is a stretch of the lease whose moves are gathered.
type group struct {
	start, end uintptr
	moves      int
}

// group finds the moves to be gathered, and their groups, going through the lease from its beginning.
func (p *planner) group() {
	p.sort(inLease)
	open := false        // the next move may be added to the last group
	before := uintptr(0) // end of the moves so far
	for _, i := range p.order {
		m := &p.moves[i]
		fits := p.fits(m, before)
		switch {
		case fits && open && p.bridges(m):
			g := &p.groups[len(p.groups)-1]
			g.end, g.moves = max(g.end, m.end()), g.moves+1
		case fits:
			p.groups = append(p.groups, group{m.Block, m.end(), 1})
			open = true
		case p.dir == Out:
			open = false
		}
		if fits {
			m.group = int32(len(p.groups) - 1)
		}
		before = max(before, m.end())
	}
	p.dissolve()
}

// pad is the distance of the move from the beginning of its aligned unit in the lease.
func (p *planner) pad(m *planned) uintptr { return m.Block % p.alignment }

// fits reports whether a move can be gathered. The first one that can sets the base.
func (p *planner) fits(m *planned, before uintptr) bool {
	pad := p.pad(m)
	if m.way != device.Gather || m.Device%p.alignment != pad {
		return false
	}
	if p.dir == In && pad != 0 || p.dir == Out && m.Block-pad < before {
		return false
	}
	if len(p.groups) == 0 {
		p.base = m.Block - pad
	}
	return uint64(m.end()-p.base) <= p.capacity
}

// bridges reports whether the gap between the last group and a move that fits may be copied with them.
func (p *planner) bridges(m *planned) bool {
	end, start := p.groups[len(p.groups)-1].end, m.Block-p.pad(m)
	limit := p.alignment
	if p.dir == In {
		limit = uintptr(p.below)
	}
	return start < end || start-end < limit
}

// dissolve removes groups of one move, and all groups if there is no gather block. Their moves, and those that did not fit, get
// another way.
func (p *planner) dissolve() {
	for i := range p.moves {
		m := &p.moves[i]
		switch {
		case m.way != device.Gather:
			continue
		case m.group == alone:
		case p.groups[m.group].moves == 1:
			m.group = alone
		case p.gather == 0:
			m.group, p.wanted = alone, true
		default:
			p.gathered++
			continue
		}
		m.way = p.ways.otherwise(m.Length)
	}
	p.groups = slices.DeleteFunc(p.groups, func(g group) bool { return g.moves == 1 || p.gather == 0 })
}

// overlap reports whether any destinations overlap.
func (p *planner) overlap() bool {
	at := inLease
	if p.dir == In {
		at = onDevice
	}
	p.sort(at)
	for i := 1; i < len(p.order); i++ {
		before := &p.moves[p.order[i-1]]
		if at(&p.moves[p.order[i]]) < at(before)+uintptr(before.Length) {
			return true
		}
	}
	return false
}

// sort sorts the moves by an address. Mostly they are in that order already.
func (p *planner) sort(at func(*planned) uintptr) {
	p.order = p.order[:0]
	for i := range p.moves {
		p.order = append(p.order, int32(i))
	}
	compare := func(a, b int32) int { return cmp.Compare(at(&p.moves[a]), at(&p.moves[b])) }
	if !slices.IsSortedFunc(p.order, compare) {
		slices.SortFunc(p.order, compare)
	}
}

func inLease(m *planned) uintptr { return m.Block }

func onDevice(m *planned) uintptr { return m.Device }
