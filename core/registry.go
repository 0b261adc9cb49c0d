package core

import (
	"container/list"
	"sync"
	"sync/atomic"

	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/core/status"

	"github.com/google/btree"
)

// entry is a region in the index, with its key beside it: a look-up compares values and allocates nothing.
type entry struct {
	addr   uintptr
	region *Region
}

// Registry is the index of an engine's registered regions, which never overlap. Adding, removing and finding one is
// O(log n). Its methods may be called from any goroutine.
//
// A region that is unregistered while it is pinned stays in leaving until an Unregister has reported that its last pin has
// ended. Memory that overlaps it cannot be registered before that. See leaving.go.
type Registry struct {
	mu      sync.RWMutex
	index   *btree.BTreeG[entry] // by address
	leaving *btree.BTreeG[entry] // regions that were taken while in use, by address; they overlap nothing either
	order   *list.List           // of *Region, in the order of registration
	holds   map[*hold]struct{}
	sweepAt int // the length of leaving at which drained regions are forgotten

	offers offers

	onDevices  atomic.Int64   // regions of device memory
	lastPinner atomic.Uint64  // number of the latest pins
	epoch      *atomic.Uint64 // see Epoch
}

func newRegistry() *Registry {
	const degree = 32 // nodes of 31 to 63 entries: a few cache lines each
	byAddress := func(a, b entry) bool { return a.addr < b.addr }
	m := &Registry{
		index: btree.NewG(degree, byAddress), leaving: btree.NewG(degree, byAddress), order: list.New(),
		holds: map[*hold]struct{}{}, sweepAt: fewestLeaving,
	}
	m.epoch = newEpoch(m)
	return m
}

// add registers a range of host memory, or of a device's. It fails with status.InvalidArgument, or with
// status.AddressOverlapped, with an overlapsLeaving in it where the other memory was unregistered and is still in use.
func (m *Registry) add(r Range, location string, access Access, on *staging.Device) error {
	if err := r.check(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if other := overlapping(m.index, r); other != nil {
		return status.Errorf(status.AddressOverlapped, "memory range %v overlaps %v, which is registered", r, other.Range)
	}
	if other := m.stillUsed(r); other != nil {
		return status.Errorf(status.AddressOverlapped, "%w", &overlapsLeaving{r, other})
	}
	region := &Region{Range: r, Location: location, Access: access, Device: on, drained: make(chan struct{})}
	region.pins.Store(1)
	region.order = m.order.PushBack(region)
	if on != nil {
		m.onDevices.Add(1)
	} else {
		hostmem.Forget(r.Addr, r.Length)
	}
	m.index.ReplaceOrInsert(entry{region.Addr, region})
	return nil
}

// take removes the region that starts at addr from the index, so that no further transfer pins it, or finds one that was
// removed before and is still pinned. Only Hold may pin it from then on, while other pins last. The caller waits for
// Region.drained, calls forget, and then tells the owner that the memory is free.
func (m *Registry) take(addr uintptr) (*Region, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found, ok := m.index.Delete(entry{addr: addr})
	if !ok {
		if again, ok := m.leaving.Get(entry{addr: addr}); ok {
			return again.region, nil
		}
		return nil, status.Errorf(status.AddressNotRegistered, "no memory is registered at %#x", addr)
	}
	m.changeEpoch()
	m.order.Remove(found.region.order)
	if found.region.Device != nil {
		m.onDevices.Add(-1)
	}
	found.region.Unpin()
	if !found.region.isDrained() {
		m.leaving.ReplaceOrInsert(found)
		m.sweep()
	}
	return found.region, nil
}

// Epoch is a number that changes whenever a region is unregistered, before its owner may use the memory for something else.
// A peer on this host reads bytes of this process first, and then the epoch, by its address. If the epoch is the one of before,
// the memory was registered all the while; otherwise the peer discards the bytes. The epoch begins at random, so that no other
// process has the same. It is 0 for good once the registry is closed: the engine grants no memory then.
func (m *Registry) Epoch() *atomic.Uint64 { return m.epoch }

// changeEpoch is called when a region is unregistered. The lock is held.
func (m *Registry) changeEpoch() {
	if m.epoch.Load() != 0 {
		m.epoch.Store(max(1, m.epoch.Load()+1))
	}
}

// close ends all offers, and revokes all memory from peers that look at the epoch.
func (m *Registry) close() {
	m.offers.close()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.epoch.Store(0)
}

// hasDevices reports whether any memory of a device is registered.
func (m *Registry) hasDevices() bool { return m.onDevices.Load() > 0 }

// Each calls f for every region in the order of registration until it returns false. f must not call the registry.
func (m *Registry) Each(f func(*Region) bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for e := m.order.Front(); e != nil; e = e.Next() {
		if !f(e.Value.(*Region)) {
			return
		}
	}
}

// overlaps reports whether a region shares a byte with the valid range r.
func (m *Registry) overlaps(r Range) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return overlapping(m.index, r) != nil
}

// atOrBelow returns the region with the highest address not above addr, or nil. The registry's lock is held.
func atOrBelow(tree *btree.BTreeG[entry], addr uintptr) (found *Region) {
	tree.DescendLessOrEqual(entry{addr: addr}, func(e entry) bool {
		found = e.region
		return false
	})
	return found
}

// overlapping returns the last region that shares a byte with the valid range r, or nil. The registry's lock is held.
func overlapping(tree *btree.BTreeG[entry], r Range) *Region {
	last := r.end() - 1
	if region := atOrBelow(tree, last); region != nil && region.end()-1 >= r.Addr {
		return region
	}
	return nil
}
