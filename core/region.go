package core

import (
	"container/list"
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/staging"
	"kvferry/core/status"
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

// Region is a registered range. While it is pinned, Unregister waits, and fails when that takes too long.
type Region struct {
	Range
	Location string          // as given at registration: "cpu:0", "npu:1", "*"
	Access   Access          // what peers may do with it
	Device   *staging.Device // the device that the memory is on, whose copies alone touch it; nil for host memory

	fault atomic.Int64 // when an access to the memory failed last, by clock.Now; 0 for never

	order   *list.Element // place in the registry's order of registration
	pins    atomic.Int64  // one for the registration itself, and one for each use
	pinner  atomic.Uint64 // pins.number of the submission that has pinned it last, see Registry.pin
	drained chan struct{} // closed when pins is 0
}

// Unpin ends a pin.
func (r *Region) Unpin() {
	if r.pins.Add(-1) == 0 {
		close(r.drained)
	}
}

// pinIfInUse pins a region unless its last pin has ended: its owner may use the memory for something else then.
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

// isDrained reports whether a region that was taken from the registry has no pins.
func (r *Region) isDrained() bool { return r.pins.Load() == 0 }

// waitDrained waits until a region that was taken from the registry has no pins, or the context ends.
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

func unpinAll(regions []*Region) {
	for _, r := range regions {
		r.Unpin()
	}
}

// faultMemory is how long a region counts as unverified after a fault. Within it, only the first fault is logged as a warning.
const faultMemory = time.Minute

// NoteFault notes that an access to memory of the region has failed: its owner has unmapped or protected the memory without
// unregistering it first. It returns true when the fault should be reported, false when another one was noted a short while ago.
func (r *Region) NoteFault() (first bool) {
	return !isRecent(r.fault.Swap(int64(clock.Now())))
}

// Unverified reports whether an access to memory of the region has failed a short while ago. A transport then checks that memory
// of it can be read before it promises a peer to send it.
func (r *Region) Unverified() bool {
	return isRecent(r.fault.Load())
}

// isRecent reports whether there was a fault at that time, 0 for none, and it still counts. It reads no clock for 0.
func isRecent(fault int64) bool { return fault != 0 && clock.Now()-time.Duration(fault) < faultMemory }
