package core

import (
	"slices"

	"kvferry/core/staging"
	"kvferry/core/status"
)

// PinRemote finds the region that holds [addr, addr+length), and pins it for a peer's READ or WRITE. The caller calls Unpin. The
// error says what is wrong with the range. There is an ErrForbidden in it where peers may do something else with the region.
// A region that is closed to them is as one that is not registered.
func (m *Registry) PinRemote(addr, length uint64, op Opcode) (*Region, error) {
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
		return nil, status.Errorf(status.AddressNotRegistered, "address range %v goes beyond the registered %v", r, region.Range)
	case region.Access == NoAccess:
		return nil, status.Errorf(status.AddressNotRegistered, "address range %v is not open to peers", r)
	case !region.Access.Allows(op):
		return nil, status.Errorf(status.AddressNotRegistered, "address range %v is registered, but %w %s it", r, ErrForbidden, op.Verb())
	}
	region.pins.Add(1)
	return region, nil
}

// pins are the regions that one submission has pinned, each of them once. Where submissions pin the same regions at the same
// time, a region may be pinned more than once.
type pins struct {
	number  uint64 // different for all pins of a registry; 0 before the first region
	regions []*Region
	latest  *Region // the last one that held all of a range: the next range often lies in it, too
	ranges  int     // about how many ranges there are: memory is allocated for no more regions
}

// pinOverlapping pins every region that shares a byte with r. Memory that is not registered needs no pin, and counts as host
// memory. on is the device that all of r is on, nil for host memory. An error says that only a part of r is on a device.
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

// pinHolder pins the region that holds all of r, and returns it. It returns nil, and pins nothing, if there is none.
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

// pin pins a region, unless these pins have it already. The lock is held.
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
