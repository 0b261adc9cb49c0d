package staging

import (
	"cmp"
	"slices"
	"sync"

	"kvferry/core/device"
	"kvferry/core/status"
)

// Late copies. If the copies of a job do not end and their stream cannot be closed, the device may still make them, at any time. They
// would overwrite what has been copied there meanwhile, and was reported.
//
//  1. abandon notes which memory of the device such copies write.
//  2. issue has refuse fail a job that writes there, as long as the copies have not ended.
//  3. freeAbandoned has them forgotten before it closes their events.

// lateCopies are those of a device, of whichever copier.
type lateCopies struct {
	mu      sync.Mutex
	streams []lateStream
}

// lateStream is what the copies of a stream may still write.
type lateStream struct {
	event  device.Event // happens when they have ended; nil if there is none
	writes []span       // sorted, and none touches another
}

// note adds the copies of jobs that are given up, in the order in which they were issued.
func (l *lateCopies) note(dead []issued) {
	var late lateStream
	for i := range dead {
		j := &dead[i]
		if !j.queued {
			continue
		}
		late.event = nil
		if j.err == nil {
			late.event = j.event
		}
		for m := range j.job.Moves {
			late.writes = append(late.writes, j.job.Moves[m].written())
		}
	}
	late.merge()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams = append(l.streams, late)
}

// merge sorts the memory that is written, and joins what overlaps or touches.
func (s *lateStream) merge() {
	slices.SortFunc(s.writes, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	merged := s.writes[:0]
	for _, w := range s.writes {
		if n := len(merged); n > 0 && w.start <= merged[n-1].end {
			merged[n-1].end = max(merged[n-1].end, w.end)
			continue
		}
		merged = append(merged, w)
	}
	s.writes = merged
}

// refuse fails if moves to the device write where late copies may.
func (l *lateCopies) refuse(moves []Move) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.streams) == 0 {
		return nil
	}
	l.streams = slices.DeleteFunc(l.streams, func(s lateStream) bool { return s.overlaps(moves) && s.hasEnded() })
	if slices.ContainsFunc(l.streams, func(s lateStream) bool { return s.overlaps(moves) }) {
		return status.Errorf(status.Context, "a copy that was given up may still write to this memory")
	}
	return nil
}

// forget is called before events are closed.
func (l *lateCopies) forget(events []device.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams = slices.DeleteFunc(l.streams, func(s lateStream) bool { return slices.Contains(events, s.event) })
}

func (s *lateStream) hasEnded() bool {
	if s.event == nil {
		return false
	}
	ended, err := s.event.Wait(0)
	return ended && err == nil
}

func (s *lateStream) overlaps(moves []Move) bool {
	return slices.ContainsFunc(moves, func(m Move) bool {
		w := m.written()
		next, _ := slices.BinarySearchFunc(s.writes, w.start, func(late span, at uintptr) int { return cmp.Compare(late.end, at+1) })
		return next < len(s.writes) && s.writes[next].start < w.end
	})
}

// written is the memory of the device that a move to it writes: of a strided move, all from the first byte to the last.
func (m *Move) written() span {
	addr, length := m.Device, m.Length
	if m.Runs != nil {
		addr, length = m.Runs.Bounds()
	}
	return span{start: addr, end: addr + uintptr(length)}
}
