package staging

import (
	"cmp"
	"runtime"
	"slices"
	"sync"
	"time"

	"kvferry/core/device"
	"kvferry/core/status"
)

// Late copies. If the copies of a job do not end and their stream cannot be closed, the device may still make them, at any time. They
// would overwrite what has been copied there meanwhile, and was reported.
//
//  1. abandon notes which memory of the device such copies write. The memory is held: it cannot be taken back.
//  2. issue has refuse fail a job that writes there.
//  3. awaitLate, on a thread of its own, asks the device from time to time whether the copies have ended. Then they are forgotten.
//  4. freeAbandoned has them forgotten before it closes their events.

// lateCopies are those of a device, of whichever copier.
type lateCopies struct {
	hold func(late []Range, why string) (release func()) // see Options

	asking sync.Mutex // held while the device is asked whether copies have ended: no event is closed meanwhile

	mu      sync.Mutex
	streams []*lateStream
}

// lateStream is what the copies of a stream may still write.
type lateStream struct {
	event   device.Event // happens when they have ended; nil if there is none
	writes  []span       // sorted, and none touches another
	release func()       // of the memory
}

// note adds the copies of jobs that are given up, in the order in which they were issued. name is that of the copier.
func (l *lateCopies) note(dead []issued, name string) {
	late := &lateStream{}
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
	ranges := make([]Range, len(late.writes))
	for i, w := range late.writes {
		ranges[i] = Range{w.start, uint64(w.end - w.start)}
	}
	late.release = l.hold(ranges, "a copy of "+name+", that was given up and does not end")
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
	if slices.ContainsFunc(l.streams, func(s *lateStream) bool { return s.overlaps(moves) }) {
		return status.Errorf(status.Context, "a copy that was given up may still write to this memory")
	}
	return nil
}

// mayEnd reports whether there are copies whose end can be noticed.
func (l *lateCopies) mayEnd() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.streams, func(s *lateStream) bool { return s.event != nil })
}

// sweep forgets the copies that have ended. The device, which may not answer, is asked without the lock: jobs wait for that.
func (l *lateCopies) sweep() {
	l.asking.Lock()
	defer l.asking.Unlock()
	l.mu.Lock()
	streams := slices.Clone(l.streams)
	l.mu.Unlock()
	for _, s := range streams {
		if s.hasEnded() {
			l.forgetThose(func(other *lateStream) bool { return other == s })
		}
	}
}

// forget is called before events are closed.
func (l *lateCopies) forget(events []device.Event) {
	l.asking.Lock()
	defer l.asking.Unlock()
	l.forgetThose(func(s *lateStream) bool { return slices.Contains(events, s.event) })
}

func (l *lateCopies) forgetThose(which func(*lateStream) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams = slices.DeleteFunc(l.streams, func(s *lateStream) bool {
		ended := which(s)
		if ended {
			s.release()
		}
		return ended
	})
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

// latePause is how long awaitLate pauses before it asks again.
const latePause = 100 * time.Millisecond

// noteLate notes the copies of jobs that are given up, and has them awaited.
func (c *copier) noteLate(dead []issued) {
	c.late.note(dead, c.name)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.await()
}

// await launches the thread that awaits late copies, if there are any and it does not run. The lock is held.
func (c *copier) await() {
	if !c.awaiting && !c.closing && c.late.mayEnd() {
		c.awaiting = true
		go c.awaitLate()
	}
}

// awaitLate runs on an OS thread of its own, which ends with it: when all late copies have ended, or the copier is being closed.
func (c *copier) awaitLate() {
	runtime.LockOSThread()
	failed := c.device.Bind()
	if failed == nil {
		for c.late.mayEnd() && !c.isStopping(latePause) {
			c.late.sweep()
		}
		failed = c.device.Unbind()
	}
	c.failedTo("await late copies", failed)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaiting = false
	if failed == nil {
		c.await() // others may have come
	}
	c.endIfIdle()
}

// isStopping waits until the copier is being closed, at most for so long.
func (c *copier) isStopping(pause time.Duration) bool {
	over := time.NewTimer(pause)
	defer over.Stop()
	select {
	case <-c.stopping:
		return true
	case <-over.C:
		return false
	}
}
