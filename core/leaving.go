package core

import "fmt"

// Memory that is unregistered while something uses it leaves the registry like this:
//
//  1. Registry.take moves its region from the index, where it could get new pins, to leaving.
//  2. Engine.drain waits until its last pin has ended, for a bounded time; then left forgets it.
//  3. Where the time is over, Unregister fails and the region stays. Registering memory that overlaps it is refused while
//     it has pins, and another Unregister waits for it again: it succeeds, too, when the last pin has ended meanwhile.

// overlapsLeaving is why memory cannot be registered that was unregistered while something used it.
type overlapsLeaving struct {
	wanted  Range
	leaving *Region
}

func (e *overlapsLeaving) Error() string {
	return fmt.Sprintf("memory range %v overlaps %v, which was unregistered and is still in use", e.wanted, e.leaving.Range)
}

// fewestLeaving is how many regions may be in leaving before any is forgotten.
const fewestLeaving = 1024

// sweep forgets drained regions once leaving has doubled: those whose owner has not asked again after an Unregister that
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

// left is called when a region that was taken is drained, and its owner is about to be told.
func (m *Registry) left(r *Region) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if found, ok := m.leaving.Get(entry{addr: r.Addr}); ok && found.region == r {
		m.leaving.Delete(found)
	}
}

// stillUsed returns a region that shares a byte with the valid range r, was taken and is not drained, or nil. The lock is
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
