package core

import "fmt"

// Memory that is unregistered while it is pinned leaves the registry in these steps:
//
//  1. Registry.take moves its region from the index to leaving. Transfers find regions in the index only, so none pins it from
//     then on. Registry.Hold still does, for a system call or a copy that was given up and does not end.
//  2. Engine.drain waits until its last pin has ended, for a limited time. Then forget removes it from leaving.
//  3. If the time is over, Unregister fails and the region stays in leaving. Memory that overlaps it cannot be registered while
//     it has pins. Another Unregister waits for it again, and succeeds at once if the last pin has ended meanwhile.

// overlapsLeaving is why memory cannot be registered: it overlaps memory that was unregistered and is still pinned.
type overlapsLeaving struct {
	wanted  Range
	leaving *Region
}

func (e *overlapsLeaving) Error() string {
	return fmt.Sprintf("memory range %v overlaps %v, which was unregistered and is still in use", e.wanted, e.leaving.Range)
}

// fewestLeaving is how many regions may be in leaving before the drained ones are forgotten.
const fewestLeaving = 1024

// sweep forgets drained regions each time that leaving has doubled: their owners have not called Unregister again after it
// failed. The lock is held.
func (m *Registry) sweep() {
	if m.leaving.Len() < m.sweepAt {
		return
	}
	var drained []entry
	m.leaving.Ascend(func(e entry) bool {
		if e.region.isDrained() {
			drained = append(drained, e)
		}
		return true
	})
	for _, e := range drained {
		m.leaving.Delete(e)
	}
	m.sweepAt = max(fewestLeaving, 2*m.leaving.Len())
}

// forget removes a region from leaving. Its last pin has ended.
func (m *Registry) forget(r *Region) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if found, ok := m.leaving.Get(entry{addr: r.Addr}); ok && found.region == r {
		m.leaving.Delete(found)
	}
}

// stillUsed returns a region in leaving that shares a byte with the valid range r and still has pins, or nil. The lock is
// held.
func (m *Registry) stillUsed(r Range) *Region {
	for {
		region := overlapping(m.leaving, r)
		if region == nil || !region.isDrained() {
			return region
		}
		m.leaving.Delete(entry{addr: region.Addr})
	}
}
