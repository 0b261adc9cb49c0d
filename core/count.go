package core

import (
	"cmp"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/metrics"
	"kvferry/core/status"
	"kvferry/core/trace"
)

// countEnded counts the tasks that have ended since the last call. No task of the batch is outstanding, but the states of some may
// not be final. The lock is held. It comes before the end of the batch can be seen: whoever has waited for it finds it counted.
func (b *Batch) countEnded() {
	all := b.all()
	if b.counted == len(all) {
		return
	}
	now := clock.Now()
	ended := metrics.Batch{Number: b.id, Took: now - b.began}
	for _, s := range all[b.counted:] {
		s.countEnded(&ended, now)
	}
	if b.trace != nil {
		b.endTrace(&ended, all[b.counted:], now)
	}
	b.began, b.trace, b.counted = 0, nil, len(all)
	b.engine.metrics.CountBatch(&ended)
}

// endTrace ends the record of what has ended. The lock is held.
func (b *Batch) endTrace(ended *metrics.Batch, submissions []*submission, now time.Duration) {
	o := trace.Outcome{Operation: ended.Operation().String(), Bytes: ended.Bytes[Read] + ended.Bytes[Write], Error: b.err}
	for _, s := range submissions {
		o.Requests += uint64(len(s.tasks))
	}
	o.Failed = o.Requests - ended.Requests[Read] - ended.Requests[Write]
	if b.trace.End(now, o) {
		b.engine.metrics.CountTraced(ended, b.trace.ID())
	}
}

// unrecorded returns the oldest batches that have not ended and are not in the trace.
func (e *Engine) unrecorded(most int) (all []trace.UnderWay) {
	e.batches.Range(func(_, found any) bool {
		b := found.(*Batch)
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.began != 0 && b.trace == nil {
			all = append(all, trace.UnderWay{Number: b.id, Began: b.began})
		}
		return true
	})
	slices.SortFunc(all, func(a, b trace.UnderWay) int { return cmp.Compare(a.Began, b.Began) })
	return all[:min(most, len(all))]
}

// countEnded counts the tasks of a submission, those with one target together.
func (s *submission) countEnded(ended *metrics.Batch, now time.Duration) {
	for first := 0; first < len(s.tasks); {
		target := s.tasks[first].Target
		completed := [2]uint64{}
		at := first
		for ; at < len(s.tasks) && s.tasks[at].Target == target; at++ {
			task := &s.tasks[at]
			ended.Operations[task.Opcode] = true
			if state := task.state.Load(); state != uint32(Waiting) && state != uint32(Completed) {
				ended.Failed = true
				continue
			}
			completed[task.Opcode]++
			ended.Bytes[task.Opcode] += task.Length
		}
		s.countCompleted(target, completed, now)
		for op, n := range completed {
			ended.Requests[op] += n
		}
		first = at
	}
}

// countCompleted counts tasks with one target, by operation.
func (s *submission) countCompleted(target SegmentID, completed [2]uint64, now time.Duration) {
	for _, w := range s.works { // one for each target
		if w.Segment == nil || w.Segment.ID != target {
			continue
		}
		peer := w.Segment.Counters()
		peer.Use(now)
		for op, n := range completed {
			if n > 0 {
				peer.Add(metrics.RequestsOf(metrics.Operation(op)), n)
			}
		}
		return
	}
}

// countFailure counts a task that fails.
func (e *Engine) countFailure(target SegmentID, reason metrics.Reason) {
	e.metrics.CountFailures(reason, 1)
	segment := e.local.segment
	if target != LocalSegment {
		segment = e.segments.numbered(target)
	}
	if segment != nil { // it was not removed
		segment.Counters().Add(metrics.FailuresOf(reason), 1)
	}
}

// bytesOutstanding is how many bytes of tasks that have not ended are not settled.
func (b *Batch) bytesOutstanding() (bytes uint64) {
	for _, s := range b.all() {
		for i := range s.tasks {
			bytes += atomic.LoadUint64(&s.tasks[i].outstanding)
		}
	}
	return bytes
}

// reasonOf is why a task fails, for the metrics.
func reasonOf(err error) metrics.Reason {
	for _, known := range []struct {
		err    error
		reason metrics.Reason
	}{{ErrSliceTimeout, metrics.TimedOut}, {ErrTimeLimit, metrics.TimedOut}, {ErrDiscarded, metrics.Cancelled}, {errRemoved, metrics.Cancelled}, {ErrClosed, metrics.Closed}, {ErrStalled, metrics.Stalled}} {
		if errors.Is(err, known.err) {
			return known.reason
		}
	}
	switch status.Of(err, status.OK) {
	case status.AddressNotRegistered:
		return metrics.Rejected
	case status.Socket:
		return metrics.Connection
	case status.Endpoint:
		return metrics.PeerFailed
	case status.InvalidArgument:
		return metrics.LocalMemory
	case status.RejectHandshake:
		return metrics.Untrusted
	case status.Metadata, status.DNS, status.MalformedJSON:
		return metrics.NoMetadata
	}
	return metrics.Other
}
