package core

import (
	"context"
	"errors"
	"fmt"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// anywhere is the location of memory whose owner does not say where it is.
const anywhere = "*"

// Register registers a range of this process. remote says whether peers may read and write it. See RegisterFor.
func (e *Engine) Register(addr uintptr, length uint64, location string, remote bool) error {
	return e.RegisterFor([]Range{{Addr: addr, Length: length}}, location, accessOf(remote))
}

// RegisterBatch registers all the ranges, for peers to read and write, or none. See RegisterFor.
func (e *Engine) RegisterBatch(ranges []Range, location string) error {
	return e.RegisterFor(ranges, location, FullAccess)
}

// RegisterFor registers all the ranges of this process, or none. location is where the memory is, as "cpu:0" or "npu:1"; "" and
// "*" leave that open. The device's library is asked whether it is device memory; where that is not possible, the location
// counts. access is what peers may do with it. It also holds for transfers of this engine to its own segment, and not for the
// local memory of its transfers. It stays until the memory is unregistered.
func (e *Engine) RegisterFor(ranges []Range, location string, access Access) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	if err := access.check(); err != nil {
		return err
	}
	if location == "" {
		location = anywhere
	}
	var err error
	added := 0
	for added < len(ranges) && err == nil {
		if err = e.add(ranges[added], location, access); err == nil {
			added++
		}
	}
	if err == nil {
		err = e.publish()
	}
	if err == nil {
		return nil
	}
	var regions []*Region
	for _, r := range ranges[:added] {
		if region, gone := e.memory.take(r.Addr); gone == nil {
			regions = append(regions, region)
		}
	}
	return inOrder(err, e.drain(regions))
}

// add registers one range. The location of device memory becomes the name of the device.
func (e *Engine) add(r Range, location string, access Access) error {
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
	err = e.memory.add(r, location, access, on)
	var conflict *overlapsLeaving
	if errors.As(err, &conflict) {
		return fmt.Errorf("%w: %s", err, e.holders(conflict.leaving))
	}
	if err == nil && on != nil && e.devices.prepares {
		on.PrepareSoon()
	}
	return err
}

// Unregister ends the registration of the range that starts at addr. It waits until no transfer uses the memory. After a grace
// period it ends those that do: it closes sessions of peers, and aborts batches of this engine. A transfer that is stuck in a
// system call or on a device may then still use the memory, and so may a copy that a device has not ended, although its transfer has
// failed: the error, a status.BatchBusy with ErrInUse in it, names it. Until it has ended, memory that overlaps the range cannot be
// registered; another Unregister waits for it again.
func (e *Engine) Unregister(addr uintptr) error { return e.UnregisterBatch([]uintptr{addr}) }

// UnregisterBatch is Unregister for several ranges. It unregisters all that it can. Ranges that are still in use come first in
// its error.
func (e *Engine) UnregisterBatch(addrs []uintptr) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	var first error
	var regions []*Region
	for _, addr := range addrs {
		region, err := e.memory.take(addr)
		if err == nil {
			e.memory.offers.endWithin(region.Range)
			regions = append(regions, region)
		} else if first == nil {
			first = err
		}
	}
	return inOrder(e.drain(regions), first, e.publish())
}

// inOrder is the first of these errors that is not nil, followed by the others; nil when all of them are.
func inOrder(errs ...error) (all error) {
	for _, err := range errs {
		switch {
		case err == nil:
		case all == nil:
			all = err
		default:
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}

// drain waits until the regions, which were taken from the registry, have no pins. All of them together have one grace period.
// After that their users are ended, and have e.ending to do so. The error names the regions that are still in use.
func (e *Engine) drain(regions []*Region) error {
	grace, done := context.WithTimeout(e.ctx, e.grace)
	defer done()
	busy := map[*Region]bool{}
	for _, region := range regions {
		if !region.waitDrained(grace) {
			e.log.Warn("memory is unregistered while in use: the transfers that use it are ended", zap.Stringer("range", region.Range))
			busy[region] = true
		}
	}
	if len(busy) > 0 {
		e.evict(busy)
	}
	rest, over := context.WithTimeout(context.Background(), e.ending)
	defer over()
	var held []*Region
	for _, region := range regions {
		if region.waitDrained(rest) {
			e.memory.forget(region)
		} else {
			held = append(held, region)
		}
	}
	if len(held) == 0 {
		return nil
	}
	return status.Errorf(status.BatchBusy, "memory was unregistered, but is %w: %s", ErrInUse, enumerate(held, func(r *Region) string {
		return fmt.Sprintf("%v by %s", r.Range, e.holders(r))
	}))
}

// evict ends the users of the regions, and does not wait.
func (e *Engine) evict(busy map[*Region]bool) {
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
}
