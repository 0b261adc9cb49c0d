package layout

import (
	"cmp"
	"slices"
)

// One side of a transfer may pass through a buffer, in which its bytes lie together. The other side then sees runs that are as
// long as its own memory has them:
//
//  1. Sort brings the axes of a part into the order of the other side's addresses. The bytes lie in the buffer in that order.
//  2. Packed is the part with the buffer in place of the side's memory, and Merged has longer runs where the other side allows it.
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

// Packed moves the same bytes in the same order. On one side they lie together, from an address on.
func (p *Pattern) Packed(side Side, at uint64) Pattern {
	packed := *p
	bytes := p.Run
	if side == Source {
		packed.Source = at
	} else {
		packed.Destination = at
	}
	for i := p.count - 1; i >= 0; i-- {
		if side == Source {
			packed.axes[i].Source = int64(bytes)
		} else {
			packed.axes[i].Destination = int64(bytes)
		}
		bytes *= p.axes[i].Count
	}
	return packed
}

// Merged moves the same bytes in the same order, with as few runs and axes as there are for that.
func (p *Pattern) Merged() Pattern {
	merged := Pattern{Source: p.Source, Destination: p.Destination, Run: p.Run}
	var inner [MaxAxes]Axis // the innermost first
	count := 0
	for i := p.count - 1; i >= 0; i-- {
		a := p.axes[i]
		switch {
		case count == 0 && a.follows(Axis{Count: merged.Run, Source: 1, Destination: 1}):
			merged.Run *= a.Count
		case count > 0 && a.follows(inner[count-1]):
			inner[count-1].Count *= a.Count
		default:
			inner[count] = a
			count++
		}
	}
	for i := range count {
		merged.axes[i] = inner[count-1-i]
	}
	merged.count = count
	return merged
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
