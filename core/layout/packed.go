package layout

import (
	"cmp"
	"slices"
)

// One side of a transfer may pass through a buffer, in which its bytes lie together. The other side then sees runs that are as
// long as its own memory has them:
//
//  1. Sort brings the axes of a part into the order of the other side's addresses. The bytes lie in the buffer in that order.
//  2. Packed is the part with the buffer in place of the side's memory.
//  3. Listed makes a transfer of such parts.

// Side is the source or the destination of a transfer.
type Side int

const (
	Source Side = iota
	Destination
)

// Other is the other side.
func (s Side) Other() Side { return 1 - s }

// stride is that of a side along an axis.
func (a *Axis) stride(of Side) int64 {
	if of == Source {
		return a.Source
	}
	return a.Destination
}

// Sort brings the axes into the order of the addresses of one side: the outermost is the one with the longest stride. Axes that
// do not go forward there come first, since runs are never merged along them.
func (p *Pattern) Sort(by Side) {
	forward := func(a *Axis) bool { return a.stride(by) > 0 }
	slices.SortStableFunc(p.axes[:p.count], func(a, b Axis) int {
		switch {
		case forward(&a) != forward(&b) && forward(&a):
			return 1
		case forward(&a) != forward(&b):
			return -1
		}
		return cmp.Compare(b.stride(by), a.stride(by))
	})
}

// Packed moves the same bytes in the same order. On one side they lie together, from an address on, and runs that follow each other
// on the other side are merged.
func (p *Pattern) Packed(side Side, at uint64) Pattern {
	packed := Pattern{Source: at, Destination: p.Destination, Run: p.Run}
	if side == Destination {
		packed.Source, packed.Destination = p.Source, at
	}
	var inner [MaxAxes]Axis // the innermost first
	count, bytes := 0, p.Run
	for i := p.count - 1; i >= 0; i-- {
		a := p.axes[i]
		step := a.stride(side.Other())
		switch {
		case count == 0 && step == int64(packed.Run):
			packed.Run *= a.Count
		case count > 0 && step == int64(inner[count-1].Count)*inner[count-1].stride(side.Other()):
			inner[count-1].Count *= a.Count
		default:
			inner[count] = Axis{Count: a.Count, Source: int64(bytes), Destination: step}
			if side == Destination {
				inner[count].Source, inner[count].Destination = step, int64(bytes)
			}
			count++
		}
		bytes *= a.Count
	}
	for packed.count < count {
		packed.axes[packed.count] = inner[count-1-packed.count]
		packed.count++
	}
	return packed
}

// Listed is a transfer that consists of these patterns, which it keeps.
func Listed(patterns []Pattern) *Transfer {
	t := &Transfer{listed: patterns}
	for i := range patterns {
		t.Runs += patterns[i].Runs()
		t.Bytes += patterns[i].Bytes()
	}
	return t
}

// nextListed is next for a transfer that was made by Listed.
func (c *patterns) nextListed() (Pattern, bool) {
	if c.pair == len(c.transfer.listed) {
		return Pattern{}, false
	}
	c.pair++
	return c.transfer.listed[c.pair-1], true
}
