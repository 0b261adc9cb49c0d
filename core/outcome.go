package core

import (
	"cmp"
	"time"

	"kvferry/core/clock"
	"kvferry/core/metrics"
)

// Outcome is what a program's own traces say of a batch.
type Outcome struct {
	Began, Ended time.Time // from the call that started it; Ended is zero while it is under way
	Requests     int       // submitted, and still to be submitted
	Ways         Ways
	Trace        string // names the batch in the trace file; "" where nothing is recorded
	Address      string // that data for the peer went to last; "" before a connection was up
}

// Ways is a set of paths.
type Ways uint32

// Has reports whether a path is in the set.
func (w Ways) Has(p metrics.Path) bool { return w&(1<<p) != 0 }

// Went notes the path that bytes of the work have gone. It takes a nanosecond.
func (w *Work) Went(p metrics.Path) {
	if ways := &w.binding().ways; !Ways(ways.Load()).Has(p) {
		ways.Or(1 << p)
	}
}

// Outcome describes the batch.
func (b *Batch) Outcome() Outcome {
	now, date := clock.NowAndDate()
	b.mu.Lock()
	defer b.mu.Unlock()
	began := cmp.Or(b.made, b.start)
	o := Outcome{Requests: b.tasks, Trace: b.engine.trace.ID(b.id)}
	if f := b.feed.Load(); f != nil {
		o.Requests += int(f.rest)
	}
	if began != 0 {
		o.Began = date.Add(began - now)
	}
	if b.pending.Load() == 0 && b.ended != 0 {
		o.Ended = date.Add(b.ended - now)
	}
	for _, s := range b.all() {
		for _, w := range s.works {
			o.Ways |= Ways(w.binding().ways.Load())
			o.Address = cmp.Or(w.Segment.lastAddress(), o.Address)
		}
	}
	return o
}
