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
	p.sort()
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
	if m.way != device.Gather || !p.isAligned(m, before) {
		return false
	}
	if len(p.groups) == 0 {
		p.base = m.Block - p.pad(m)
	}
	return uint64(m.end()-p.base) <= p.capacity
}

// isAligned reports whether a move lies as rule 6 wants it. before is the end of those before it in the lease.
func (p *planner) isAligned(m *planned, before uintptr) bool {
	pad := p.pad(m)
	if m.Device%p.alignment != pad {
		return false
	}
	return p.dir == In && pad == 0 || p.dir == Out && m.Block-pad >= before
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

// span is memory that a move writes.
type span struct {
	start, end uintptr
	move       int // its number
}

// overlap reports whether the order of the moves matters: destinations overlap, or a direct move reads what another one writes.
// Mostly they are sorted already on the side of the lease.
func (p *planner) overlap() bool {
	p.spans = p.spans[:0]
	for i := range p.moves {
		m := &p.moves[i]
		start := m.Device
		if p.dir == Out {
			start = m.Block
		}
		p.spans = append(p.spans, span{start, start + uintptr(m.Length), i})
	}
	return p.spansOverlap() || p.dir == Direct && p.readsWhatItWrites()
}

// readsWhatItWrites reports whether a move reads memory of the spans, which are sorted and do not overlap.
func (p *planner) readsWhatItWrites() bool {
	return slices.ContainsFunc(p.moves, func(m planned) bool {
		next, _ := slices.BinarySearchFunc(p.spans, m.Block, func(s span, at uintptr) int { return cmp.Compare(s.end, at+1) })
		return next < len(p.spans) && p.spans[next].start < m.end()
	})
}

// spansOverlap sorts the spans, and reports whether any two of different moves overlap.
func (p *planner) spansOverlap() bool {
	compare := func(a, b span) int { return cmp.Compare(a.start, b.start) }
	if !slices.IsSortedFunc(p.spans, compare) {
		slices.SortFunc(p.spans, compare)
	}
	var furthest, next span // the furthest end so far, and that of another move
	furthest.move = -1
	for _, s := range p.spans {
		before := furthest
		if s.move == furthest.move {
			before = next
		}
		if s.start < before.end {
			return true
		}
		switch {
		case s.move == furthest.move:
			furthest.end = max(furthest.end, s.end)
		case s.end > furthest.end:
			furthest, next = s, furthest
		case s.end > next.end:
			next = s
		}
	}
	return false
}

// sort sorts the moves by their places in the lease. Mostly they are in that order already.
func (p *planner) sort() {
	p.order = p.order[:0]
	for i := range p.moves {
		p.order = append(p.order, int32(i))
	}
	compare := func(a, b int32) int { return cmp.Compare(p.moves[a].Block, p.moves[b].Block) }
	if !slices.IsSortedFunc(p.order, compare) {
		slices.SortFunc(p.order, compare)
	}
}
