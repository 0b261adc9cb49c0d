package core

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/core/status"

	"github.com/google/btree"
)

// Range is one stretch of memory of this process.
type Range struct {
	Addr   uintptr
	Length uint64 // bytes
}

func (r Range) String() string { return fmt.Sprintf("%#x+%d", r.Addr, r.Length) }

// end is the first address after the range; a valid range does not wrap.
func (r Range) end() uintptr { return r.Addr + uintptr(r.Length) }

// Holds reports whether length bytes from addr on, at least one of them, lie in the range.
func (r Range) Holds(addr, length uint64) bool {
	skip := addr - uint64(r.Addr) // large where addr is below the range
	return length > 0 && skip < r.Length && length <= r.Length-skip
}

func (r Range) check() error {
	switch {
	case r.Addr == 0:
		return status.Errorf(status.InvalidArgument, "memory at NULL cannot be registered")
	case r.Length == 0:
		return status.Errorf(status.InvalidArgument, "memory at %#x cannot be registered with length 0", r.Addr)
	case uint64(r.Addr)+r.Length < uint64(r.Addr):
		return status.Errorf(status.InvalidArgument, "memory range %v wraps around the address space", r)
	}
	return nil
}

// Region is a registered range. While pins are held on it, its owner cannot take it back: Unregister waits, and fails when
// that takes too long.
type Region struct {
	Range
	Location string          // as given at registration: "cpu:0", "npu:1", "*"
	Remote   bool            // peers may read and write it
	Device   *staging.Device // where the memory is a device's: nobody but its copies touches the bytes; nil for host memory

	fault atomic.Int64 // when memory of it was last found to be inaccessible, by clock.Now; 0 for never

	order   *list.Element // place in the registry's order of registration
	pins    atomic.Int64  // one for the registration itself, one for each use
	pinner  atomic.Uint64 // number of the pins that were the latest to pin it by Registry.pin
	drained chan struct{} // closed when pins has come to 0
}

// faultMemory is how long a region counts as unverified after a fault. Within it, only the first fault is logged as a warning.
const faultMemory = time.Minute

// NoteFault notes that memory of the region was found to be inaccessible: its owner has unmapped or protected it without
// unregistering it first. It returns true when that is to be told, and false when it was a short while ago.
func (r *Region) NoteFault() (first bool) {
	return !isRecent(r.fault.Swap(int64(clock.Now())))
}

// Unverified reports whether memory of the region was found to be inaccessible a short while ago. A transport checks
// that it can be read before it promises a peer to send it.
func (r *Region) Unverified() bool {
	return isRecent(r.fault.Load())
}

// isRecent reports whether a fault at that time, 0 for none, is to be remembered. The clock is not asked where there is none.
func isRecent(fault int64) bool { return fault != 0 && clock.Now()-time.Duration(fault) < faultMemory }

// Unpin ends a pin.
func (r *Region) Unpin() {
	if r.pins.Add(-1) == 0 {
		close(r.drained)
	}
}

// pinIfInUse pins a region unless its last pin has ended, after which its owner may have the memory back.
func (r *Region) pinIfInUse() bool {
	for {
		pins := r.pins.Load()
		if pins <= 0 {
			return false
		}
		if r.pins.CompareAndSwap(pins, pins+1) {
			return true
		}
	}
}

// isDrained reports whether nothing pins a region that was taken.
func (r *Region) isDrained() bool { return r.pins.Load() == 0 }

// entry is a region in the index, with its key beside it: a look-up compares values and allocates nothing.
type entry struct {
	addr   uintptr
	region *Region
}

// Registry is the index of an engine's registered regions, which never overlap. Adding, removing and finding one is
// O(log n). Its methods may be called from any goroutine.
//
// A region that is unregistered while something uses it is in leaving until an Unregister has reported that nothing does
// any more: no memory that overlaps it can be registered before its last pin has ended.
type Registry struct {
	mu      sync.RWMutex
	index   *btree.BTreeG[entry] // by address
	leaving *btree.BTreeG[entry] // regions that were taken while in use, by address; they overlap nothing either
	order   *list.List           // of *Region, in the order of registration
	holds   map[*hold]struct{}
	sweepAt int // how many regions leaving has when those that are drained are forgotten

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

// Epoch is a number that changes whenever a region is taken back, before its owner may use the memory for something
// else: what was read while it stayed the same was read from registered memory. It begins at random, so that no other
// process has the same by chance. It is 0 for good once the registry is closed: no memory may be granted then. Peers on
// this host look at it where it is, by its address.
func (m *Registry) Epoch() *atomic.Uint64 { return m.epoch }

// close takes all memory back from those who look at the epoch, and has no more of it granted.
func (m *Registry) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.epoch.Store(0)
}

// changeEpoch is called when a region is taken back. The lock is held.
func (m *Registry) changeEpoch() {
	if m.epoch.Load() != 0 {
		m.epoch.Store(max(1, m.epoch.Load()+1))
	}
}

// add registers a range of host memory, or on a device, or fails with status.InvalidArgument or status.AddressOverlapped,
// which has an overlapsLeaving in it where the memory was unregistered and is still in use.
func (m *Registry) add(r Range, location string, remote bool, on *staging.Device) error {
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
	region := &Region{Range: r, Location: location, Remote: remote, Device: on, drained: make(chan struct{})}
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

// take removes the region that starts at addr from the index, so that it gets no new pins, or finds one that was removed
// while something used it. The caller waits for Region.drained before it lets the owner have the memory back, and then
// calls left.
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

// PinRemote finds the one remotely accessible region that holds [addr, addr+length) and keeps it from going away
// until Unpin. The error says what is wrong with the range.
func (m *Registry) PinRemote(addr, length uint64) (*Region, error) {
	r := Range{Addr: uintptr(addr), Length: length}
	if length == 0 || addr+length < addr {
		return nil, status.Errorf(status.InvalidArgument, "address range %v is empty or wraps", r)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	region := atOrBelow(m.index, r.Addr)
	switch {
	case region == nil || region.end()-1 < r.Addr:
		return nil, status.Errorf(status.AddressNotRegistered, "address range %v is not registered", r)
	case region.end()-1 < r.end()-1:
		return nil, status.Errorf(status.AddressNotRegistered, "address range %v reaches beyond the registered %v", r, region.Range)
	case !region.Remote:
		return nil, status.Errorf(status.AddressNotRegistered, "address range %v is not open to peers", r)
	}
	region.pins.Add(1)
	return region, nil
}

// pins are the regions that one submission keeps from going away, each of them once; or more often, where others pin the
// same regions at the same time.
type pins struct {
	number  uint64 // unlike that of any other pins of the registry; 0 before the first
	regions []*Region
	latest  *Region // that held all of a range: the next range tends to lie in it too
	ranges  int     // that are to be pinned, about: room is made for so many regions at most
}

// pinOverlapping adds every region that shares a byte with r. Memory that is not registered needs no pin, and is host
// memory. on is the device that all of r lies on, nil for host memory; an error says that r lies on a device in part.
func (m *Registry) pinOverlapping(r Range, to *pins) (on *staging.Device, err error) {
	if r.Length == 0 || r.end()-1 < r.Addr {
		return nil, nil
	}
	if to.latest != nil && to.latest.Holds(uint64(r.Addr), r.Length) {
		return to.latest.Device, nil
	}
	if to.number == 0 {
		to.number = m.lastPinner.Add(1)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	first := atOrBelow(m.index, r.Addr)
	if first != nil && first.end()-1 >= r.Addr {
		m.pin(first, to)
		on = first.Device
		if first.Holds(uint64(r.Addr), r.Length) {
			to.latest = first
			return on, nil
		}
	}
	m.index.AscendGreaterOrEqual(entry{addr: r.Addr}, func(e entry) bool {
		if e.addr > r.end()-1 {
			return false
		}
		m.pin(e.region, to)
		if e.region.Device != nil {
			on = e.region.Device
		}
		return true
	})
	if on != nil {
		err = status.Errorf(status.InvalidArgument, "memory range %v is not within one region of device memory (%s)", r, on.Name())
	}
	return on, err
}

// pinHolder adds the region that holds all of r, and returns it; nil where there is none, and then nothing is added.
func (m *Registry) pinHolder(r Range, to *pins) *Region {
	if to.latest != nil && to.latest.Holds(uint64(r.Addr), r.Length) {
		return to.latest
	}
	if to.number == 0 {
		to.number = m.lastPinner.Add(1)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	region := atOrBelow(m.index, r.Addr)
	if region == nil || !region.Holds(uint64(r.Addr), r.Length) {
		return nil
	}
	m.pin(region, to)
	to.latest = region
	return region
}

// pin adds a region, unless it is there already. The lock is held.
func (m *Registry) pin(region *Region, to *pins) {
	if region.pinner.Load() == to.number {
		return
	}
	region.pinner.Store(to.number)
	region.pins.Add(1)
	if len(to.regions) == cap(to.regions) {
		to.regions = slices.Grow(to.regions, min(m.index.Len(), to.ranges)+1)
	}
	to.regions = append(to.regions, region)
}

func unpinAll(regions []*Region) {
	for _, r := range regions {
		r.Unpin()
	}
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

// waitDrained waits until nothing pins a region that was taken, or the context ends.
func (r *Region) waitDrained(ctx context.Context) bool {
	select {
	case <-r.drained:
		return true
	case <-ctx.Done():
	}
	select {
	case <-r.drained: // both at once
		return true
	default:
		return false
	}
}
