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
// would read memory that was given back, or write to it. They would also overwrite what has been copied there meanwhile, and was
// reported.
//
//  1. abandon notes which memory of devices such copies read and write. The memory is held: it cannot be taken back.
//  2. issue has refuse fail a job that writes where such a copy writes. Other jobs may use memory that such a copy reads: what it has
//     read goes to memory that is held as well, or to a block that is not used again.
//  3. awaitLate, on a thread of its own, asks the device from time to time whether the copies have ended. Then they are forgotten.
//  4. freeAbandoned has them forgotten before it closes their events.

// lateCopies are those of a device, of whichever copier.
type lateCopies struct {
	hold func(memory []Range, why string) (release func()) // see Options

	asking sync.Mutex // held while the device is asked whether copies have ended: no event is closed meanwhile

	mu      sync.Mutex
	streams []*lateStream
}

// lateStream is the copies of a stream.
type lateStream struct {
	event   device.Event // happens when they have ended; nil if there is none
	writes  []span       // memory of the device that they may still write: sorted, and none touches another
	release func()       // of the memory that they may still read or write
}

// note adds the copies of jobs of a direction that are given up, in the order in which they were issued. name is that of the copier.
func (l *lateCopies) note(dead []issued, dir Direction, name string) *lateStream {
	late := &lateStream{}
	var reads []span
	for i := range dead {
		j := &dead[i]
		if !j.queued {
			continue
		}
		late.event = nil
		if j.recorded {
			late.event = j.event
		}
		for m := range j.job.Moves {
			move := &j.job.Moves[m]
			if dir == Out {
				reads = append(reads, move.onDevice())
				continue
			}
			late.writes = append(late.writes, move.onDevice())
			if dir == Direct {
				reads = append(reads, span{start: move.Block, end: move.end()})
			}
		}
	}
	reads, late.writes = merge(reads), merge(late.writes)
	copies := "a copy of " + name + ", that was given up and does not end: it may still "
	releaseReads, releaseWrites := l.hold(ranges(reads), copies+"read the memory"), l.hold(ranges(late.writes), copies+"write to the memory")
	late.release = func() {
		releaseReads()
		releaseWrites()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams = append(l.streams, late)
	return late
}

// merge sorts memory by address, and joins what overlaps or touches.
func merge(memory []span) []span {
	slices.SortFunc(memory, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	merged := memory[:0]
	for _, s := range memory {
		if n := len(merged); n > 0 && s.start <= merged[n-1].end {
			merged[n-1].end = max(merged[n-1].end, s.end)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

func ranges(memory []span) []Range {
	all := make([]Range, len(memory))
	for i, s := range memory {
		all[i] = Range{s.start, uint64(s.end - s.start)}
	}
	return all
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

// forget is called when copies have ended, before their events are closed.
func (l *lateCopies) forget(late *lateStream) {
	l.asking.Lock()
	defer l.asking.Unlock()
	l.forgetThose(func(s *lateStream) bool { return s == late })
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
		w := m.onDevice()
		next, _ := slices.BinarySearchFunc(s.writes, w.start, func(late span, at uintptr) int { return cmp.Compare(late.end, at+1) })
		return next < len(s.writes) && s.writes[next].start < w.end
	})
}

// onDevice is the memory of the device that a move reads or writes: of a strided move, all from the first byte to the last.
func (m *Move) onDevice() span {
	addr, length := m.Device, m.Length
	if m.Runs != nil {
		addr, length = m.Runs.Bounds()
	}
	return span{start: addr, end: addr + uintptr(length)}
}

// latePause is how long awaitLate pauses before it asks again.
const latePause = 100 * time.Millisecond

// noteLate notes the copies of jobs that are given up, and has them awaited.
func (c *copier) noteLate(dead []issued) *lateStream {
	late := c.late.note(dead, c.planner.dir, c.name)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.await()
	return late
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
