package metrics

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Bounds is how many bounds a histogram has: 1 µs, and each twice the one before, up to 67 s. What took longer than the last
// one has a place of its own.
const Bounds = 27

// Bound is a bound of every histogram.
func Bound(i int) time.Duration { return time.Microsecond << i }

// Histogram counts durations by their length. Any goroutine may call its methods, and none waits.
type Histogram struct {
	counts [Bounds + 1]atomic.Uint64
	sum    atomic.Int64 // nanoseconds
}

// Observe counts a duration.
func (h *Histogram) Observe(d time.Duration) {
	h.counts[place(d)].Add(1)
	h.sum.Add(int64(d))
}

// place is the first bound that a duration does not exceed.
func place(d time.Duration) int {
	if d <= time.Microsecond {
		return 0
	}
	return min(bits.Len64(uint64(d-1)/uint64(time.Microsecond)), Bounds)
}

// Exemplar is one of the durations in a place of a histogram, which the trace has.
type Exemplar struct {
	TraceID string
	Value   float64 // seconds
	At      float64 // the date, in seconds
}

// exemplars has the latest one of each place of a histogram. Any goroutine may call its methods, and none waits.
type exemplars [Bounds + 1]atomic.Pointer[Exemplar]

func (x *exemplars) put(d time.Duration, traceID string) {
	x[place(d)].Store(&Exemplar{traceID, d.Seconds(), float64(time.Now().UnixMilli()) / 1e3})
}

// all are those of each place, nil where there is none; nil if there are none at all.
func (x *exemplars) all() (all []*Exemplar) {
	for i := range x {
		one := x[i].Load()
		if one != nil && all == nil {
			all = make([]*Exemplar, len(x))
		}
		if one != nil {
			all[i] = one
		}
	}
	return all
}

// addTo adds the counts so far to a distribution.
func (h *Histogram) addTo(d *Distribution) {
	for i := range h.counts {
		d.Counts[i] += h.counts[i].Load()
	}
	d.Sum += time.Duration(h.sum.Load())
}

// Distribution returns the counts so far.
func (h *Histogram) Distribution() (d Distribution) {
	h.addTo(&d)
	return d
}

// Distribution is what a Histogram has counted at one moment.
type Distribution struct {
	Counts [Bounds + 1]uint64 // durations above the last bound and up to this one; the last element has those above all bounds
	Sum    time.Duration
}

// Count is how many durations were counted.
func (d *Distribution) Count() (n uint64) {
	for _, c := range d.Counts {
		n += c
	}
	return n
}

// Plus is two distributions together.
func (d Distribution) Plus(other Distribution) Distribution {
	for i := range d.Counts {
		d.Counts[i] += other.Counts[i]
	}
	d.Sum += other.Sum
	return d
}

// Since is what was counted after an earlier distribution of the same histogram.
func (d Distribution) Since(earlier Distribution) Distribution {
	for i := range d.Counts {
		d.Counts[i] -= earlier.Counts[i]
	}
	d.Sum -= earlier.Sum
	return d
}

// Quantile estimates the duration that a part of all durations, from 0 to 1, do not exceed: it is between the right two bounds,
// where it would be if the durations between them were spread evenly. It is 0 if nothing was counted, and the last bound at most.
func (d *Distribution) Quantile(part float64) time.Duration {
	rank := part * float64(d.Count())
	if rank <= 0 {
		return 0
	}
	below := 0.0
	for i := range Bounds {
		here := float64(d.Counts[i])
		if here > 0 && below+here >= rank {
			low := time.Duration(0)
			if i > 0 {
				low = Bound(i - 1)
			}
			return low + time.Duration(float64(Bound(i)-low)*(rank-below)/here)
		}
		below += here
	}
	return Bound(Bounds - 1)
}
