package layout

// Run is bytes that lie together on both sides.
type Run struct{ Source, Destination, Bytes uint64 }

// Runs gives the runs of a transfer, portion by portion. Two goroutines must not use it at the same time.
type Runs struct {
	patterns patterns
	now      Pattern
	at       [MaxAxes]uint64 // index of the next run on each axis
	next     Run
	left     bool // the pattern has more runs
}

// Each begins with the first run.
func (t *Transfer) Each() *Runs { return &Runs{patterns: patterns{transfer: t}} }

// Next writes the next runs of one pattern, and returns how many; 0 only after the last run of all. The runs of one
// call are of one length.
func (r *Runs) Next(into []Run) int {
	if !r.left && !r.begin() {
		return 0
	}
	for i := range into {
		into[i] = r.next
		r.advance()
		if !r.left {
			return i + 1
		}
	}
	return len(into)
}

// begin goes to the first run of the next pattern.
func (r *Runs) begin() bool {
	r.now, r.left = r.patterns.next()
	r.at = [MaxAxes]uint64{}
	r.next = Run{r.now.Source, r.now.Destination, r.now.Run}
	return r.left
}

// advance goes to the next run of the pattern.
func (r *Runs) advance() {
	for i := r.now.count - 1; i >= 0; i-- {
		a := &r.now.axes[i]
		r.next.Source += uint64(a.Source)
		r.next.Destination += uint64(a.Destination)
		if r.at[i]++; r.at[i] < a.Count {
			return
		}
		r.next.Source -= a.Count * uint64(a.Source)
		r.next.Destination -= a.Count * uint64(a.Destination)
		r.at[i] = 0
	}
	r.left = false
}
