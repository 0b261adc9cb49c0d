package client

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"weak"

	"kvferry/core"
	"kvferry/core/metadata"
)

// Ranges of targets that a former WRITE may still land in; see fence.
//
// maxRanges bounds the ranges of a quarantine. With more of them, those that nobody can know about become one.
const maxRanges = 8192

// quarantines are those of all targets of an engine.
type quarantines struct {
	busy atomic.Int64 // ranges in all of them: nothing is asked while there are none

	mu       sync.Mutex
	byTarget map[string]*quarantine
}

// quarantine is the ranges of one target that a WRITE may have to wait for. It is under the lock of quarantines.
type quarantine struct{ ranges []heldRange }

// heldRange is a range that bytes may still land in.
type heldRange struct {
	low, high uint64 // the latter is not in it
	work      weak.Pointer[core.Work]
	end       *connectionEnd
}

// connectionEnd is the end of a connection at its target.
type connectionEnd struct {
	target  string // as targetKey names it
	where   string // the connection, for an error
	unknown bool   // nobody will ever know whether it has come; under the lock of quarantines
}

// targetKey names a target: by its identity, or by the address of its data port, which is the one that its descriptor gives
// whatever other address it was reached by.
func targetKey(d *metadata.Descriptor, remote string) string {
	switch {
	case d.Identity != "":
		return d.Identity
	case d.DataHost != "":
		return net.JoinHostPort(d.DataHost, strconv.Itoa(d.DataPort))
	}
	return remote
}

// add puts the ranges of WRITEs that were in flight on one connection into the quarantine of its target.
func (q *quarantines) add(writes []piece, end *connectionEnd) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.byTarget == nil {
		q.byTarget = map[string]*quarantine{}
	}
	t := q.byTarget[end.target]
	if t == nil {
		t = &quarantine{}
		q.byTarget[end.target] = t
	}
	before := len(t.ranges)
	for i := range writes {
		low, length := writes[i].remoteRange()
		t.ranges = append(t.ranges, heldRange{low: low, high: low + length, work: weak.Make(writes[i].work), end: end})
	}
	if len(t.ranges) > maxRanges {
		t.merge()
	}
	q.busy.Add(int64(len(t.ranges) - before))
}

// merge makes one range of those that nobody can know about.
func (t *quarantine) merge() {
	var all heldRange
	t.ranges = slices.DeleteFunc(t.ranges, func(r heldRange) bool {
		if r.end.unknown {
			if all.end == nil {
				all = heldRange{low: r.low, end: r.end}
			}
			all.low, all.high = min(all.low, r.low), max(all.high, r.high)
		}
		return r.end.unknown
	})
	if all.end != nil {
		t.ranges = append(t.ranges, all)
	}
}

// release frees the ranges of a connection that is over at its target.
func (q *quarantines) release(end *connectionEnd) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.byTarget[end.target]
	if t == nil {
		return
	}
	before := len(t.ranges)
	t.ranges = slices.DeleteFunc(t.ranges, func(r heldRange) bool { return r.end == end })
	q.busy.Add(int64(len(t.ranges) - before))
	if len(t.ranges) == 0 {
		delete(q.byTarget, end.target)
	}
}

// giveUp says that the end of a connection will never be known.
func (q *quarantines) giveUp(end *connectionEnd) {
	q.mu.Lock()
	defer q.mu.Unlock()
	end.unknown = true
}

// check returns nil for a WRITE that may be sent to a target, and otherwise the end that it has to wait for. unknown says
// that this end will never be known.
func (q *quarantines) check(target string, p *piece) (end *connectionEnd, unknown bool) {
	if q.busy.Load() == 0 || p.op != core.Write {
		return nil, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.byTarget[target]
	if t == nil {
		return nil, false
	}
	same := weak.Make(p.work)
	low, length := p.remoteRange()
	for _, r := range t.ranges {
		if low >= r.high || r.low >= low+length {
			continue
		}
		if r.end.unknown && r.work == same { // another piece of the same work, or the same one again
			continue
		}
		end, unknown = r.end, unknown || r.end.unknown
	}
	return end, unknown
}

// quarantine puts WRITEs that were in flight on a connection into the quarantine of its target.
func (f *fence) quarantine(conn *connection, unanswered []piece) *connectionEnd {
	end := &connectionEnd{target: conn.target, where: fmt.Sprintf("to %v", conn.Remote)}
	f.quarantines.add(unanswered, end)
	return end
}
