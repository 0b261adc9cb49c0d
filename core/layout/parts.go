package layout

// Parts cuts the patterns of a transfer into parts, one after the other. The parts have the order of the runs. Two
// goroutines must not use it at the same time.
type Parts struct {
	patterns patterns
	now      Pattern
	at       [MaxAxes]uint64 // index of the next run on each axis
	skip     uint64          // bytes of that run before the next part
	left     bool            // the pattern has more
}

// Parts begins with the first run.
func (t *Transfer) Parts() *Parts {
	p := &Parts{patterns: patterns{transfer: t}}
	p.begin()
	return p
}

func (p *Parts) begin() {
	p.now, p.left = p.patterns.next()
	p.at, p.skip = [MaxAxes]uint64{}, 0
}

// Left reports whether there are more parts.
func (p *Parts) Left() bool { return p.left }

// Run is the rest of the next run: a pattern without axes.
func (p *Parts) Run() Pattern {
	run := Pattern{Source: p.now.Source + p.skip, Destination: p.now.Destination + p.skip, Run: p.now.Run - p.skip}
	for i, a := range p.now.Axes() {
		run.Source += p.at[i] * uint64(a.Source)
		run.Destination += p.at[i] * uint64(a.Destination)
	}
	return run
}

// CutRun takes at most limit bytes of the next run.
func (p *Parts) CutRun(limit uint64) Pattern {
	part := p.Run()
	if part.Run > limit {
		part.Run = limit
		p.skip += limit
		return part
	}
	p.advance(p.now.count-1, 1)
	return part
}

// Cut takes runs of the next pattern: as many as have limit bytes, and as make a part that fits; nil for any. At least it takes
// what is left of the next run, up to the limit, whether that fits or not.
func (p *Parts) Cut(limit uint64, fits func(*Pattern) bool) Pattern {
	best := p.Run()
	if p.skip > 0 || best.Run > limit {
		return p.CutRun(limit)
	}
	split, steps := p.now.count-1, uint64(1) // the axis along which best is cut off, and how much of it is in best
	bytes := best.Run
	for i := p.now.count - 1; i >= 0; i-- {
		axis := p.now.axes[i]
		count := min(axis.Count-p.at[i], limit/bytes)
		if count == 0 {
			break
		}
		more := p.part(best.Source, best.Destination, i, count)
		if fits != nil && !fits(&more) {
			break
		}
		best, split, steps = more, i, count
		if p.at[i] > 0 || count < axis.Count {
			break
		}
		bytes *= count
	}
	p.advance(split, steps)
	return best
}

// part is the pattern of the runs from an address on each side on: count steps along an axis, and all along those behind it.
func (p *Parts) part(source, destination uint64, axis int, count uint64) Pattern {
	part := Pattern{Source: source, Destination: destination, Run: p.now.Run}
	for i := axis; i < p.now.count; i++ {
		a := p.now.axes[i]
		if i == axis {
			a.Count = count
		}
		if a.Count > 1 {
			part.axes[part.count] = a
			part.count++
		}
	}
	return part
}

// advance goes so many steps along an axis; -1 is the only run of a pattern without axes.
func (p *Parts) advance(axis int, steps uint64) {
	p.skip = 0
	for ; axis >= 0; axis-- {
		if p.at[axis] += steps; p.at[axis] < p.now.axes[axis].Count {
			return
		}
		p.at[axis], steps = 0, 1
	}
	p.begin()
}

// Bytes is how many bytes the pattern moves.
func (p *Pattern) Bytes() uint64 { return p.Run * p.Runs() }
