package core

import (
	"cmp"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
)

// Progress is how many bytes of a batch have arrived, and whether any are moving.
type Progress struct {
	Moved, Total uint64        // bytes that are known to have arrived, and all bytes
	Still        time.Duration // for how long no byte was seen to move; it is as exact as Batch.Progress is called often
	Moving       bool          // bytes were seen to move a short while ago
	Awaited      string        // why no byte can move yet; "" where bytes can
}

// movedLately is how long no byte may move before a transfer is reported as standing still. A slow link may take as long to send
// the contents of the system's buffers.
const movedLately = 2 * time.Second

func (p Progress) String() string {
	if p.Awaited != "" {
		return p.Awaited
	}
	moved := fmt.Sprintf("%d of %d bytes are known to have arrived", p.Moved, p.Total)
	if p.Moving {
		return moved + ", and more are on their way: it makes progress, and needs more time"
	}
	return fmt.Sprintf("%s, and nothing is known to have moved for %.1f s: the peer, or the network to it, stands still", moved, p.Still.Seconds())
}

// movement is what the last call of Batch.Progress has seen.
type movement struct {
	moved uint64        // bytes, those that the transports count included
	since time.Duration // when that number was seen first, by clock.Now
	seen  bool          // bytes were seen to move; otherwise since is when the batch was made
}

// Progress counts the bytes that have arrived. It takes some nanoseconds for each task.
func (b *Batch) Progress() Progress {
	p := Progress{Awaited: b.feed.Load().awaited()}
	var seen uint64
	for _, s := range b.all() {
		for i := range s.tasks {
			task := &s.tasks[i]
			p.Total += task.Length
			if state := State(task.state.Load()); state == Waiting || state == Completed {
				p.Moved += task.Length - atomic.LoadUint64(&task.outstanding)
			}
		}
		for _, w := range s.works {
			seen += b.engine.movedFor(w.Segment)
		}
	}
	seen += p.Moved
	now := clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.movement.since == 0 && p.Moved == 0: // what the connections have moved may belong to earlier batches
		b.movement = movement{moved: seen, since: cmp.Or(b.began, now)}
	case seen != b.movement.moved:
		b.movement = movement{moved: seen, since: now, seen: true}
	}
	p.Still = now - b.movement.since
	p.Moving = b.movement.seen && p.Still < movedLately
	return p
}

// Took is how long the tasks of the batch have taken so far, from the first submission on: until now, or until the last one ended.
func (b *Batch) Took() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.start == 0:
		return 0
	case b.pending.Load() == 0:
		return b.ended - b.start
	}
	return clock.Now() - b.start
}

// ProgressOf is the progress of several batches together.
func ProgressOf(batches []*Batch) Progress {
	all := Progress{Still: math.MaxInt64}
	for _, b := range batches {
		p := b.Progress()
		all.Moved += p.Moved
		all.Total += p.Total
		all.Still = min(all.Still, p.Still)
		all.Moving = all.Moving || p.Moving
		all.Awaited = cmp.Or(all.Awaited, p.Awaited)
	}
	return all
}

// movedFor is the transports' count of bytes that they have sent to, and received from, a segment's owner.
func (e *Engine) movedFor(s *Segment) (bytes uint64) {
	if s == nil {
		return 0
	}
	for _, t := range e.installed() {
		bytes += t.Moved(s)
	}
	return bytes
}
