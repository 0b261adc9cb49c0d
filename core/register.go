package core

import (
	"context"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// anywhere is the location of memory whose place is not told.
const anywhere = "*"

// Register makes a range of this process known: remote says whether peers may read and write it. location is where
// the memory lies, as "cpu:0" or "npu:1"; "" and "*" leave that open. Device memory is recognised by itself where its
// library can be asked, and by its location otherwise.
func (e *Engine) Register(addr uintptr, length uint64, location string, remote bool) error {
	return e.register([]Range{{Addr: addr, Length: length}}, location, remote)
}

// RegisterBatch registers all the ranges, open to peers, or none.
func (e *Engine) RegisterBatch(ranges []Range, location string) error {
	return e.register(ranges, location, true)
}

func (e *Engine) register(ranges []Range, location string, remote bool) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	if location == "" {
		location = anywhere
	}
	var err error
	added := 0
	for added < len(ranges) && err == nil {
		if err = e.add(ranges[added], location, remote); err == nil {
			added++
		}
	}
	if err == nil {
		err = e.publish()
	}
	if err != nil {
		var regions []*Region
		for _, r := range ranges[:added] {
			if region, gone := e.memory.take(r.Addr); gone == nil {
				regions = append(regions, region)
			}
		}
		e.drain(regions)
	}
	return err
}

// add registers one range. Memory that a device was found for is described by that.
func (e *Engine) add(r Range, location string, remote bool) error {
	if err := r.check(); err != nil {
		return err
	}
	on, err := e.devices.at(r, location)
	if err != nil {
		return err
	}
	if on != nil {
		location = on.Name()
	}
	return e.memory.add(r, location, remote, on)
}

// Unregister takes back the range that starts at addr. It first waits for what is moving its bytes, and after
// a grace period ends it: sessions of peers are closed, and batches of this engine aborted.
func (e *Engine) Unregister(addr uintptr) error { return e.UnregisterBatch([]uintptr{addr}) }

// UnregisterBatch is Unregister for every range that is registered; it returns the first error.
func (e *Engine) UnregisterBatch(addrs []uintptr) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	var first error
	var regions []*Region
	for _, addr := range addrs {
		region, err := e.memory.take(addr)
		if err == nil {
			regions = append(regions, region)
		} else if first == nil {
			first = err
		}
	}
	e.drain(regions)
	if err := e.publish(); first == nil {
		first = err
	}
	return first
}

// drain returns when nothing uses the regions any more, which were taken from the registry. They have one period of
// grace together.
func (e *Engine) drain(regions []*Region) {
	patience, done := context.WithTimeout(e.ctx, e.grace)
	defer done()
	busy := map[*Region]bool{}
	for _, region := range regions {
		if !region.waitDrained(patience) {
			e.log.Warn("memory is unregistered while in use: ending what uses it", zap.Stringer("range", region.Range))
			busy[region] = true
		}
	}
	if len(busy) == 0 {
		return
	}
	e.batches.Range(func(_, b any) bool {
		if region := b.(*Batch).firstPinned(busy); region != nil {
			b.(*Batch).abort(status.Errorf(status.AddressNotRegistered, "memory %v was unregistered", region.Range))
		}
		return true
	})
	e.abortTransports()
	for region := range busy {
		for _, t := range e.installed() {
			t.Evict(region)
		}
	}
	for region := range busy {
		<-region.drained
	}
}
