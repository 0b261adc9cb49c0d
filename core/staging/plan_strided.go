package staging

import (
	"slices"

	"kvferry/core/device"
	"kvferry/core/hostmem"
)

// Strided moves. See planner.

// shape is parts of strided moves that differ in their places only. One call copies them all.
type shape struct {
	device.Strided
	at []device.Base
}

// divide replaces strided moves. A move whose runs a kernel copies fastest is cut into parts that are strided copies each, as few as
// there can be, and these are added to the shapes. Any other one becomes a move for each run. So does one whose own destinations
// may overlap, and so do all of them where the destinations of two moves may, since a kernel copies in no order. It returns the moves
// without those that are in the shapes.
func (p *planner) divide(moves []Move) []Move {
	p.shapes = p.shapes[:0]
	if !slices.ContainsFunc(moves, func(m Move) bool { return m.Runs != nil }) {
		return moves
	}
	p.divided, p.spans = p.divided[:0], p.spans[:0]
	for i := range moves {
		p.divideOne(&moves[i], i, !p.byRuns)
	}
	if p.dir == In && len(p.shapes) > 0 && p.spansOverlap() {
		p.divided, p.shapes = p.divided[:0], p.shapes[:0]
		for i := range moves {
			p.divideOne(&moves[i], i, false)
		}
	}
	return p.divided
}

// divideOne cuts the move of a number into strided copies if a kernel may make them, and otherwise into runs.
func (p *planner) divideOne(m *Move, number int, byKernel bool) {
	if m.Runs == nil {
		p.addRun(*m, number)
		return
	}
	byKernel = byKernel && p.below > 0 && (p.dir == Out || m.Runs.IsDisjoint()) && p.ways.strides(m.Runs.Run, int(m.Length/m.Runs.Run))
	for done := uint64(0); done < m.Length; {
		part := m.Runs.Cut(m.Skip+done, m.Length-done)
		block := m.Block + uintptr(done)
		done += part.Bytes()
		if byKernel && part.Count > 0 {
			p.addParts(part, block, number)
			continue
		}
		for run := range part.Runs() {
			p.addRun(Move{Device: run, Block: block, Length: part.Run}, number)
			block += uintptr(part.Run)
		}
	}
}

// addRun adds a move that is not strided.
func (p *planner) addRun(m Move, number int) {
	if m.Length > 0 {
		p.divided = append(p.divided, m)
		if p.dir == In {
			p.spans = append(p.spans, span{m.Device, m.Device + uintptr(m.Length), number})
		}
	}
}

// farStep is from when on steps along an axis lead to other memory, as from a layer to the next: it may be another allocation, with
// memory of nobody in between, in bytes. Where there is such memory between allocations that lie closer together, the device refuses
// the strided copies, and the job is copied again with byRuns.
const farStep = 64 << 10

// addParts adds a part of a move to its shape. It becomes several ones along its outermost axis if it has more axes than there are
// dimensions, or far steps.
func (p *planner) addParts(part hostmem.Strided, block uintptr, number int) {
	axes := part.Axes[:part.Count]
	far := func(a hostmem.Axis) bool { return max(a.Stride, -a.Stride) >= farStep }
	if part.Count <= device.Dimensions && !slices.ContainsFunc(axes, far) {
		p.addPart(&part, block, number)
		return
	}
	outer := axes[0]
	part.Count = copy(part.Axes[:], part.Axes[1:part.Count])
	for range outer.Count {
		p.addParts(part, block, number)
		part.Base += uintptr(outer.Stride)
		block += uintptr(part.Bytes())
	}
}

// addPart adds a part to the parts of its shape.
func (p *planner) addPart(part *hostmem.Strided, block uintptr, number int) {
	onDevice, inLease := [device.Dimensions]int64{}, [device.Dimensions]int64{}
	s := device.Strided{Length: part.Run}
	for i := range s.Counts {
		s.Counts[i] = 1
	}
	bytes := part.Run
	for i, at := part.Count-1, device.Dimensions-1; i >= 0; i, at = i-1, at-1 {
		axis := part.Axes[i]
		s.Counts[at], onDevice[at], inLease[at] = uint32(axis.Count), axis.Stride, int64(bytes)
		bytes *= axis.Count
	}
	base := device.Base{Dst: block, Src: part.Base}
	s.DstStrides, s.SrcStrides = inLease, onDevice
	if p.dir == In {
		base = device.Base{Dst: part.Base, Src: block}
		s.DstStrides, s.SrcStrides = onDevice, inLease
		addr, length := part.Bounds()
		p.spans = append(p.spans, span{addr, addr + uintptr(length), number})
	}
	found := p.shape(s)
	found.at = append(found.at, base)
}

// Peers choose how many shapes there are, and how many places each has. mostPlaces bounds those of one: its memory is kept. To look
// at more than the last lastShapes takes longer than another call.
const mostPlaces, lastShapes = 1 << 10, 16

// shape is one of the last that is like s and has room, or a new one.
func (p *planner) shape(s device.Strided) *shape {
	for i := len(p.shapes) - 1; i >= max(0, len(p.shapes)-lastShapes); i-- {
		if p.shapes[i].Strided == s && len(p.shapes[i].at) < mostPlaces {
			return &p.shapes[i]
		}
	}
	n := len(p.shapes)
	if n < cap(p.shapes) {
		p.shapes = p.shapes[:n+1]
	} else {
		p.shapes = append(p.shapes, shape{})
	}
	found := &p.shapes[n]
	found.Strided, found.at = s, found.at[:0]
	return found
}

// planShapes plans a step for each shape. They are the first steps: see planTogether.
func (p *planner) planShapes() {
	for i := range p.shapes {
		p.steps = append(p.steps, step{kind: p.dir.kind(), way: device.Kernel, shape: &p.shapes[i]})
	}
}
