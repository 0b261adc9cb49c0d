package staging

import (
	"math"
	"slices"

	"kvferry/core/device"
)

// planner decides how the moves of a job are copied, from their sizes and addresses alone.
//
// A copy between host and device takes an NPU some 10 to 20 us to queue, for any length; at 25 GB/s, 250 to 500 KB are copied in
// that time. A copy within the device takes some 2 us. So n small moves, copied one by one, take n*15 us and the time of their
// bytes; gathered, they take n*2 us and once 15 us: seven times less for many blocks of 4 KiB. For a GPU both kinds of copies take
// the same time, and those of a batch a fraction of it. device.Traits describe a device. The rules:
//
//  1. Moves that follow each other on the device and in the lease are joined.
//  2. A move of at least `below` bytes is copied by itself, and so is a single small one. On a device that does not gather, every
//     move counts as small.
//  3. Small moves are gathered, on a device that gathers. Out: they are copied into the gather block, device memory as long
//     as a staging block, and lie there as in the lease; then each group of them that has no gaps goes to the host at once.
//     In: each group goes to the gather block at once, and is scattered from there.
//  4. Small moves that are not gathered are copied in one batch, if the runtime has batches and there are two or more of them. The
//     copies of a batch have no order, so there is no batch if destinations overlap. With AscendCL gathering is better than a
//     batch, which makes its copies one by one and saves only the calls.
//  5. Copies within the device need both addresses aligned. place arranges that: an address in the lease and that on
//     the device differ by a multiple of the alignment, and no two moves share an aligned unit of the lease. Out, the
//     bytes before an unaligned move, up to its aligned unit, are gathered with it: allocations begin aligned, so they
//     can be read, and they end in bytes that place has skipped. In, the device has no such unused bytes: an unaligned move is
//     copied by itself. So is a move that was not placed in this way.
//  6. Gaps in a group: Out, less than an aligned unit, since the gap is overwritten. In, less than `below`: to copy these bytes for
//     nothing takes less time than another copy.
//  7. Out, if destinations overlap, moves are copied one by one in their order. In, gathered moves and others are
//     written in the order of the moves anyway.
type planner struct {
	dir       Direction
	below     uint64
	alignment uintptr // a power of two
	gathers   bool    // small moves
	batches   bool    // the runtime has them
	gather    uintptr // the gather block; 0 if there is none
	capacity  uint64  // size of the gather block in bytes

	// Results of the last plan.
	wanted   bool // it would have gathered, had there been a gather block
	gathered int  // moves that are gathered

	// Memory that the next plan uses again.
	moves  []planned
	order  []int32
	groups []group
	base   uintptr // the address in the lease that lies at the beginning of the gather block
	copies []device.Copy
	steps  []step
}

func newPlanner(dir Direction, traits device.Traits, o Options) planner {
	p := planner{dir: dir, below: o.GatherBelow, alignment: traits.Alignment, gathers: traits.Gathers, batches: true, capacity: o.BlockSize}
	if !p.gathers && p.below > 0 {
		p.below = math.MaxUint64
	}
	return p
}

// planned is a move, joined with those that follow it without a gap.
type planned struct {
	Move
	group int32 // index of the group that it is gathered with, or alone or batched
}

const (
	alone   = -1 // copied by itself
	batched = -2
)

// step is a call of the stream.
type step struct {
	kind   device.Kind
	batch  bool
	copies []device.Copy
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
	p.join(moves)
	p.groups, p.copies, p.steps = p.groups[:0], slices.Grow(p.copies[:0], 2*len(p.moves)), p.steps[:0]
	p.wanted, p.gathered = false, 0
	overlap := (p.dir == Out || p.batches) && p.overlap()
	if p.countSmall() > 1 {
		if p.gathers && (p.dir == In || !overlap) {
			p.group()
		}
		if p.batches && !overlap {
			p.planBatch()
		}
	}
	if p.dir == Out {
		p.planOut()
	} else {
		p.planIn()
	}
	return p.steps
}

func (p *planner) join(moves []Move) {
	p.moves = p.moves[:0]
	for _, m := range moves {
		if m.Length == 0 {
			continue
		}
		if n := len(p.moves); n > 0 {
			last := &p.moves[n-1]
			if last.Device+uintptr(last.Length) == m.Device && last.end() == m.Block {
				last.Length += m.Length
				continue
			}
		}
		p.moves = append(p.moves, planned{m, alone})
	}
}

// end is the first address after the move in the lease.
func (m *Move) end() uintptr { return m.Block + uintptr(m.Length) }

func (p *planner) small(m *planned) bool { return m.Length < p.below }

func (p *planner) countSmall() int {
	n := 0
	for i := range p.moves {
		if p.small(&p.moves[i]) {
			n++
		}
	}
	return n
}

// planBatch plans a batch of the small moves that are not gathered. It is the first step: if the device turns out to have no
// batches, nothing is queued yet.
func (p *planner) planBatch() {
	n := 0
	for i := range p.moves {
		if m := &p.moves[i]; p.small(m) && m.group == alone {
			n++
		}
	}
	if n < 2 {
		return
	}
	for i := range p.moves {
		if m := &p.moves[i]; p.small(m) && m.group == alone {
			m.group = batched
			p.add(p.dir.kind(), p.direct(m))
		}
	}
	p.steps[0].batch = true
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
			p.add(device.HostToDevice, p.direct(m))
		}
	}
}

// gatherAt is the address in the gather block of the byte at an address in the lease.
func (p *planner) gatherAt(addr uintptr) uintptr { return p.gather + addr - p.base }

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
	if n := len(p.steps); n > 0 && p.steps[n-1].kind == kind && !p.steps[n-1].batch {
		last := &p.steps[n-1]
		last.copies = last.copies[:len(last.copies)+1]
		return
	}
	p.steps = append(p.steps, step{kind: kind, copies: p.copies[len(p.copies)-1:]})
}
