package layout

import (
	"cmp"
	"iter"
	"slices"
)

// MaxAxes is how many axes a pattern has at most.
const MaxAxes = 5

// Pattern is runs of bytes of one length at regular places on both sides. There is one run for each combination of
// indices of the axes, and none of them reaches into another at the destination.
type Pattern struct {
	Source, Destination uint64 // address of the first run
	Run                 uint64 // bytes
	axes                [MaxAxes]Axis
	count               int
}

// Axis is how often a pattern repeats in one direction, and the bytes from one time to the next on each side. At the
// source they may be negative, or 0 if the same bytes go to several places.
type Axis struct {
	Count               uint64
	Source, Destination int64
}

// follows reports whether each step along the axis goes on where the one before it ends along an inner one, on both sides.
func (a Axis) follows(inner Axis) bool {
	return a.Source == int64(inner.Count)*inner.Source && a.Destination == int64(inner.Count)*inner.Destination
}

// Axes are the axes of the pattern, the outermost first: the runs are in the order of the destination's addresses
// where axes do not interleave.
func (p *Pattern) Axes() []Axis { return p.axes[:p.count] }

// Runs is how many runs there are.
func (p *Pattern) Runs() uint64 {
	runs := uint64(1)
	for _, a := range p.Axes() {
		runs *= a.Count
	}
	return runs
}

// Bounds are the memory that the runs lie in on each side, with the gaps between them.
func (p *Pattern) Bounds() (source, destination Range) {
	source, destination = Range{p.Source, p.Run}, Range{p.Destination, p.Run}
	for _, a := range p.Axes() {
		steps := a.Count - 1
		if a.Source < 0 {
			source.Address -= steps * uint64(-a.Source)
			source.Bytes += steps * uint64(-a.Source)
		} else {
			source.Bytes += steps * uint64(a.Source)
		}
		destination.Bytes += steps * uint64(a.Destination)
	}
	return source, destination
}

// form is a pattern relative to where a group of tokens begins in a pair of tensors.
type form struct {
	source, destination int64 // bytes from there to the first run
	run                 uint64
	axes                []Axis // first those that do not fit into a pattern: each combination of their indices is one
	patterns            uint64 // the number of these combinations
	runs                uint64 // of all patterns
}

// newForm merges axes, the smallest unit of which has `run` bytes, as far as they allow, and sorts them.
func newForm(run uint64, axes []Axis) form {
	f := form{run: run, patterns: 1, runs: 1}
	for _, a := range axes {
		if a.Destination < 0 && a.Count > 1 { // begin at the other end
			f.source += int64(a.Count-1) * a.Source
			f.destination += int64(a.Count-1) * a.Destination
			a.Source, a.Destination = -a.Source, -a.Destination
		}
		if a.Count > 1 {
			f.axes = append(f.axes, a)
		}
	}
	for f.mergeOne() {
	}
	for _, a := range f.axes {
		f.runs *= a.Count
	}
	slices.SortFunc(f.axes, func(a, b Axis) int { return cmp.Compare(b.Destination, a.Destination) })
	for i := range len(f.axes) - MaxAxes {
		least := i
		for j := i; j < len(f.axes); j++ {
			if f.axes[j].Count < f.axes[least].Count {
				least = j
			}
		}
		a := f.axes[least]
		f.axes = slices.Insert(slices.Delete(f.axes, least, least+1), i, a)
		f.patterns *= a.Count
	}
	return f
}

// mergeOne merges an axis with the run, or with another axis, if there is one that goes on where the other ends on
// both sides.
func (f *form) mergeOne() bool {
	for i, a := range f.axes {
		if a.follows(Axis{Count: f.run, Source: 1, Destination: 1}) {
			f.run *= a.Count
			f.axes = slices.Delete(f.axes, i, i+1)
			return true
		}
		for j := range f.axes {
			b := &f.axes[j]
			if j != i && a.follows(*b) {
				b.Count *= a.Count
				f.axes = slices.Delete(f.axes, i, i+1)
				return true
			}
		}
	}
	return false
}

// pattern makes one of the patterns of a form.
func (f *form) pattern(source, destination, index uint64) Pattern {
	p := Pattern{Source: source + uint64(f.source), Destination: destination + uint64(f.destination), Run: f.run}
	outer := max(len(f.axes)-MaxAxes, 0)
	for _, a := range f.axes[:outer] {
		step := index % a.Count
		index /= a.Count
		p.Source += step * uint64(a.Source)
		p.Destination += step * uint64(a.Destination)
	}
	p.count = copy(p.axes[:], f.axes[outer:])
	return p
}

// Patterns are all patterns of the transfer.
func (t *Transfer) Patterns() iter.Seq[Pattern] {
	return func(yield func(Pattern) bool) {
		c := patterns{transfer: t}
		for p, more := c.next(); more; p, more = c.next() {
			if !yield(p) {
				return
			}
		}
	}
}

// patterns goes through the patterns of a transfer: pair by pair, and for each of them group by group.
type patterns struct {
	transfer    *Transfer
	pair, group int    // pair is the index into the patterns where these are listed
	index       uint64 // of the pattern within its form
}

// next returns false after the last one.
func (c *patterns) next() (Pattern, bool) {
	t := c.transfer
	if t.listed != nil {
		return c.nextListed()
	}
	if c.pair == len(t.pairs) {
		return Pattern{}, false
	}
	pair, group := &t.pairs[c.pair], &t.tokens.groups[c.group]
	kind := &t.kinds[pair.kind]
	f := &kind.forms[group.shape]
	p := f.pattern(pair.source+uint64(kind.source.bytes(group.at.sourceBlock, group.at.sourceToken)),
		pair.destination+uint64(kind.destination.bytes(group.at.destinationBlock, group.at.destinationToken)), c.index)
	if c.index++; c.index == f.patterns {
		c.index, c.group = 0, c.group+1
	}
	if c.group == len(t.tokens.groups) {
		c.group, c.pair = 0, c.pair+1
	}
	return p, true
}
