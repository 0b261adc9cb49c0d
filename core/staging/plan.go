package staging

import (
	"slices"

	"kvferry/core/device"
)

// planner decides how the moves of a job are copied, from their sizes and addresses, and from what is known of the device.
// It is the one place where that is decided. The rules:
//
//  1. Strided moves whose runs a kernel copies fastest become strided copies, unless byRuns is set, and other ones a move for each
//     run: see divide. Moves that follow each other on the device and in the lease are joined.
//  2. Each move gets a way: see ways. A single move that is not copied by itself is copied by itself all the same.
//  3. Gather. Out: moves are copied into the gather block, device memory as long as a staging block, and lie there as in the
//     lease; then each group of them that has no gaps goes to the host at once. In: each group goes to the gather block at
//     once, and is scattered from there. A move of `below` bytes or more is not gathered.
//  4. Batch and Kernel: all moves of the way are one step. Its copies have no order, so there is no such step if destinations
//     overlap. Moves that cannot be gathered are copied in such a step, too, if there are two or more of them.
//  5. Matrix: moves of one length that follow each other at one distance on either side are the rows of one copy, where that is
//     faster, or they would be copied one by one; see runs. Not if destinations overlap.
//  6. Copies within the device need both addresses aligned. place arranges that: an address in the lease and that on
//     the device differ by a multiple of the alignment, and no two moves share an aligned unit of the lease. Out, the
//     bytes before an unaligned move, up to its aligned unit, are gathered with it: allocations begin aligned, so they
//     can be read, and they end in bytes that place has skipped. In, the device has no such unused bytes: an unaligned move is
//     not gathered. Neither is a move that was not placed in this way.
//  7. Gaps in a group: Out, less than an aligned unit, since the gap is overwritten. So nothing is gathered beside strided copies,
//     which may lie there. In, less than `below`: to copy these bytes for nothing takes less time than another copy.
//  8. Out, if destinations overlap, moves are copied one by one in their order. In, gathered moves and others are
//     written in the order of the moves anyway.
//  9. Direct: moves go from Block to Device as In, by a kernel, in batches or one by one, and nothing is gathered. They are copied
//     one by one in their order if destinations overlap, if one move reads what another one writes, and from another device.
type planner struct {
	dir       Direction
	below     uint64  // 0: all moves are copied by themselves
	alignment uintptr // a power of two
	ways      ways
	from      *Device // the device that the bytes of a direct job come from, if that is another one
	gather    uintptr // the gather block; 0 if there is none
	capacity  uint64  // size of the gather block in bytes
	least     int     // moves of a run
	byRuns    bool    // no move becomes a strided copy

	// Results of the last plan.
	gathers  bool // some moves may be gathered
	wanted   bool // it would have gathered, had there been a gather block
	gathered int  // moves that are gathered

	// Memory that the next plan uses again.
	divided []Move
	shapes  []shape
	moves   []planned
	spans   []span
	order   []int32
	groups  []group
	base    uintptr // the address in the lease that lies at the beginning of the gather block
	copies  []device.Copy
	steps   []step
	runs    []run
}

func newPlanner(dir Direction, traits device.Traits, o Options) planner {
	return planner{
		dir: dir, below: o.GatherBelow, alignment: traits.Alignment, ways: newWays(dir, traits, o), capacity: o.BlockSize,
		least: runLeast,
	}
}

// planned is a move, joined with those that follow it without a gap.
type planned struct {
	Move
	joined int // moves
	way    device.Way
	group  int32 // index of the group that it is gathered with, or alone or together
}

const (
	alone    = -1 // copied by itself
	together = -2 // in a step of all moves of its way, or of the rows of a matrix
)

// step is a call of the stream.
type step struct {
	kind   device.Kind
	way    device.Way // not Gather
	copies []device.Copy
	from   *Device     // of single copies from another device
	rows   device.Rows // of a Matrix, in place of copies
	shape  *shape      // of strided copies by a kernel, in place of copies
}

// count is how many copies the step has, each part of a shape taken as one.
func (s *step) count() int {
	if s.shape != nil {
		return len(s.shape.at)
	}
	return max(len(s.copies), int(s.rows.Count))
}

// place is Device.Place. A big move is aligned to a line of the processor's cache.
func place(end uint64, addr uintptr, length, below, alignment uint64) uint64 {
	const line = 64
	if length >= below {
		return roundUp(end, line)
	}
	return roundUp(end, alignment) + uint64(addr)%alignment
}

// plan returns the calls that do the moves, in their order. They are valid until plan is called again.
func (p *planner) plan(moves []Move) []step {
	p.join(p.divide(moves))
	p.groups, p.copies, p.steps = p.groups[:0], slices.Grow(p.copies[:0], 2*len(p.moves)), p.steps[:0]
	p.planShapes()
	p.wanted, p.gathered = false, 0
	if p.assign() > 1 {
		overlap := p.overlap()
		if p.gathers && p.mayGather(overlap) {
			p.group()
		} else if p.gathers {
			p.dissolve()
		}
		if !overlap {
			p.planMatrices()
			p.planTogether(device.Kernel)
			p.planTogether(device.Batch)
		}
	}
	if p.dir == Out {
		p.planOut()
	} else {
		p.planIn()
	}
	return p.steps
}

// mayGather reports whether moves may be gathered: see rules 7 and 8.
func (p *planner) mayGather(overlap bool) bool {
	return p.dir == In || !overlap && len(p.shapes) == 0
}

func (p *planner) join(moves []Move) {
	p.moves = p.moves[:0]
	for _, m := range moves {
		if m.Length == 0 {
			continue
		}
		if n := len(p.moves); n > 0 {
			last := &p.moves[n-1]
			if last.Device+uintptr(last.Length) == m.Device && last.end() == m.Block && p.mayJoin(m, last.Length+m.Length) {
				last.Length += m.Length
				last.joined++
				continue
			}
		}
		p.moves = append(p.moves, planned{m, 1, device.Single, alone})
	}
}

// mayJoin reports whether moves of so many bytes together may be one, of which m is the last. A direct one may not write what
// it reads.
func (p *planner) mayJoin(m Move, length uint64) bool {
	return p.dir != Direct || !overlaps(m.Device, m.Block, length)
}

// end is the first address after the move in the lease.
func (m *Move) end() uintptr { return m.Block + uintptr(m.Length) }

// assign gives each move its way, and returns how many are not to be copied by themselves.
func (p *planner) assign() (others int) {
	if p.below == 0 || p.from != nil {
		return 0
	}
	p.findRuns()
	p.ways.begin(p.moves)
	p.gathers = false
	for i := range p.moves {
		m := &p.moves[i]
		if m.way == device.Matrix {
			others++
		} else if m.way = p.ways.of(m.Length, m.Length < p.below); m.way != device.Single {
			others++
			p.gathers = p.gathers || m.way == device.Gather
		}
	}
	return others
}

// planTogether plans a step of the moves of a way. These are the first steps: if the device turns out to lack the way,
// nothing is queued yet but copies that may be made again.
func (p *planner) planTogether(way device.Way) {
	n := 0
	for i := range p.moves {
		if m := &p.moves[i]; m.way == way && m.group == alone {
			n++
		}
	}
	if n < 2 {
		return
	}
	first := len(p.copies)
	for i := range p.moves {
		if m := &p.moves[i]; m.way == way && m.group == alone {
			m.group = together
			p.copies = append(p.copies, p.direct(m))
		}
	}
	p.steps = append(p.steps, step{kind: p.dir.kind(), way: way, copies: p.copies[first:]})
}

// planOut gathers, and then copies the groups and the single moves to the host.
func (p *planner) planOut() {
	for i := range p.moves {
		if m := &p.moves[i]; m.group >= 0 {
			pad := p.pad(m)
			p.add(device.WithinDevice, device.Copy{Dst: p.gatherAt(m.Block - pad), Src: m.Device - pad, Length: m.Length + uint64(pad)})
		}
	}
	for _, g := range p.groups {
		p.add(device.DeviceToHost, device.Copy{Dst: g.start, Src: p.gatherAt(g.start), Length: uint64(g.end - g.start)})
	}
	for i := range p.moves {
		if m := &p.moves[i]; m.group == alone {
			p.add(device.DeviceToHost, p.direct(m))
		}
	}
}

// planIn copies the groups to the device. Then it scatters them, and copies the single moves, in the order of the moves.
func (p *planner) planIn() {
	for _, g := range p.groups {
		p.add(device.HostToDevice, device.Copy{Dst: p.gatherAt(g.start), Src: g.start, Length: uint64(g.end - g.start)})
	}
	for i := range p.moves {
		switch m := &p.moves[i]; {
		case m.group >= 0:
			p.add(device.WithinDevice, device.Copy{Dst: m.Device, Src: p.gatherAt(m.Block), Length: m.Length})
		case m.group == alone:
			p.add(p.dir.kind(), p.direct(m))
		}
	}
}

// gatherAt is the address in the gather block of the byte at an address in the lease.
func (p *planner) gatherAt(addr uintptr) uintptr { return p.gather + addr - p.base }

// movesOf is how many moves of the job the first copies make, where all copies are single ones in the order of the moves.
func (p *planner) movesOf(copies int) (moves int) {
	for i := range p.moves[:copies] {
		moves += p.moves[i].joined
	}
	return moves
}

// direct is the copy of a single move.
func (p *planner) direct(m *planned) device.Copy {
	if p.dir == Out {
		return device.Copy{Dst: m.Block, Src: m.Device, Length: m.Length}
	}
	return device.Copy{Dst: m.Device, Src: m.Block, Length: m.Length}
}

// add adds a copy to the plan: to its last call, if that is of the same kind.
func (p *planner) add(kind device.Kind, c device.Copy) {
	p.copies = append(p.copies, c) // within its capacity, so that steps can hold parts of it
	if n := len(p.steps); n > 0 && p.steps[n-1].kind == kind && p.steps[n-1].way == device.Single {
		last := &p.steps[n-1]
		last.copies = last.copies[:len(last.copies)+1]
		return
	}
	p.steps = append(p.steps, step{kind: kind, copies: p.copies[len(p.copies)-1:], from: p.from})
}
