package core

import (
	"errors"

	"kvferry/core/clock"
	"kvferry/core/metrics"
	"kvferry/core/status"
)

// countEnded counts the tasks that have ended since the last call. No task of the batch is outstanding, but the states of some may
// not be final. The lock is held. It comes before the end of the batch can be seen: whoever has waited for it finds it counted.
func (b *Batch) countEnded() {
	all := b.all()
	if b.counted == len(all) {
		return
	}
	ended := metrics.Batch{Number: b.id, Took: clock.Now() - b.began}
	for _, s := range all[b.counted:] {
		for i := range s.tasks {
			task := &s.tasks[i]
			ended.Operations[task.Opcode] = true
			if state := task.state.Load(); state != uint32(Waiting) && state != uint32(Completed) {
				ended.Failed = true
				continue
			}
			ended.Requests[task.Opcode]++
			ended.Bytes[task.Opcode] += task.Length
		}
	}
	b.began, b.counted = 0, len(all)
	b.engine.metrics.CountBatch(&ended)
}

// reasonOf is why a task fails, for the metrics.
func reasonOf(err error) metrics.Reason {
	for _, known := range []struct {
		err    error
		reason metrics.Reason
	}{{ErrSliceTimeout, metrics.TimedOut}, {ErrDiscarded, metrics.Cancelled}, {ErrClosed, metrics.Closed}, {ErrStalled, metrics.Stalled}} {
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
		return metrics.Security
	case status.Metadata, status.DNS, status.MalformedJSON:
		return metrics.Metadata
	}
	return metrics.Other
}
