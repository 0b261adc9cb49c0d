package core

import (
	"context"
	"errors"
	"fmt"

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
	err = e.memory.add(r, location, remote, on)
	var conflict *overlapsLeaving
	if errors.As(err, &conflict) {
		return fmt.Errorf("%w: %s", err, e.holders(conflict.leaving))
	}
	return err
}

// Unregister takes back the range that starts at addr. It first waits for what is moving its bytes, and after
// a grace period ends it: sessions of peers are closed, and batches of this engine aborted. What then does not end in
// time, as it is stuck in a system call or on a device, may go on using the memory: the error, a status.BatchBusy with
// ErrInUse in it, names it. Until it has ended no memory that overlaps the range can be registered; another Unregister
// waits for it again.
func (e *Engine) Unregister(addr uintptr) error { return e.UnregisterBatch([]uintptr{addr}) }

// UnregisterBatch is Unregister for every range that is registered. Its error has that of the ranges that are still in use
// first.
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
	return inOrder(e.drain(regions), first, e.publish())
}

// inOrder is an error of the first of these that there is, which tells the others as well; nil where there is none.
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

// drain returns when nothing uses the regions any more, which were taken from the registry. They have one period of
// grace together, and then e.ending for what uses them to end. The error names the regions that are in use all the same.
func (e *Engine) drain(regions []*Region) error {
	patience, done := context.WithTimeout(e.ctx, e.grace)
	defer done()
	busy := map[*Region]bool{}
	for _, region := range regions {
		if !region.waitDrained(patience) {
			e.log.Warn("memory is unregistered while in use: ending what uses it", zap.Stringer("range", region.Range))
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
			e.memory.left(region)
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

// evict has what uses the regions end soon.
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
