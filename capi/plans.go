package main

// #include "internal.h"
import "C"

import (
	"math"
	"unsafe"

	"kvferry/core"
	"kvferry/core/layout"
	"kvferry/core/status"
)

//export kvferry_go_parse_layout
func kvferry_go_parse_layout(text C.text_t, length C.size_t, reason *C.char) (handle unsafe.Pointer) {
	run(reason, func() error {
		written, err := entries("the text of the layout", (*byte)(unsafe.Pointer(text)), length)
		if err != nil {
			return err
		}
		l, err := layout.Parse(written)
		if err != nil {
			return status.Errorf(status.InvalidArgument, "%w", err)
		}
		handle = handles.add(l)
		return nil
	})
	return handle
}

//export kvferry_go_free_layout
func kvferry_go_free_layout(handle unsafe.Pointer, reason *C.char) C.int {
	return negated(reason, func() error { return endOf[*layout.Layout](handle, "layout") })
}

//export kvferry_go_make_plan
func kvferry_go_make_plan(sources C.places_t, sourceCount C.size_t, destinations C.places_t, destinationCount C.size_t,
	tokens C.uint64_t, partial C.int, reason *C.char) (handle unsafe.Pointer) {
	run(reason, func() (err error) {
		request := layout.Request{Tokens: uint64(tokens), Partial: partial != 0}
		if request.Sources, err = readPlaces("source", sources, sourceCount); err != nil {
			return err
		}
		if request.Destinations, err = readPlaces("destination", destinations, destinationCount); err != nil {
			return err
		}
		plan, err := request.NewPlan()
		if err != nil {
			return status.Errorf(status.InvalidArgument, "%w", err)
		}
		handle = handles.add(plan)
		return nil
	})
	return handle
}

// readPlaces makes places of an array in C's memory. Their tables stay there.
func readPlaces(side string, list C.places_t, count C.size_t) ([]layout.Place, error) {
	if count > layout.MaxPlaces {
		return nil, status.Errorf(status.InvalidArgument, "%d %ss are more than %d", uint64(count), side, layout.MaxPlaces)
	}
	from, err := entries("the list of "+side+"s", (*C.kvferry_place_t)(unsafe.Pointer(list)), count)
	if err != nil {
		return nil, err
	}
	places := make([]layout.Place, len(from))
	for i := range from {
		p := &places[i]
		if from[i].kind == C.KVFERRY_OFFERED {
			if err := readOffered(p, &from[i]); err != nil {
				return nil, status.Errorf(status.InvalidArgument, "%s %d: %w", side, i, err)
			}
			continue
		}
		if p.Layout, err = found[*layout.Layout](unsafe.Pointer(from[i].layout), "layout"); err != nil {
			return nil, status.Errorf(status.InvalidArgument, "%s %d: %w", side, i, err)
		}
		numbers, err := entries("the table", (*uint64)(unsafe.Pointer(from[i].numbers)), from[i].count)
		if err != nil {
			return nil, status.Errorf(status.InvalidArgument, "%s %d: %w", side, i, err)
		}
		p.First = uint64(from[i].first)
		switch from[i].kind {
		case C.KVFERRY_BLOCKS:
			p.Blocks = numbers
		case C.KVFERRY_SLOTS:
			p.Slots = numbers
		default:
			return nil, status.Errorf(status.InvalidArgument, "%s %d: its numbers are of kind %d, which is none", side, i, int(from[i].kind))
		}
	}
	return places, nil
}

// readOffered makes a place of an offer of another process.
func readOffered(p *layout.Place, from *C.kvferry_place_t) error {
	offered, err := found[*layout.Offered](unsafe.Pointer(from.layout), "offer")
	if err != nil {
		return err
	}
	if from.numbers != nil || from.count != 0 {
		return status.Errorf(status.InvalidArgument, "it has %d numbers of its own, and those of the offer", uint64(from.count))
	}
	*p = offered.Place
	p.First += uint64(from.first)
	if p.First < offered.First {
		return status.Errorf(status.InvalidArgument, "position %d is beyond all tables", uint64(from.first))
	}
	return nil
}

//export kvferry_go_free_plan
func kvferry_go_free_plan(handle unsafe.Pointer, reason *C.char) C.int {
	return negated(reason, func() error { return endOf[*layout.Plan](handle, "plan") })
}

//export kvferry_go_plan_transfers
func kvferry_go_plan_transfers(handle unsafe.Pointer, reason *C.char) (count C.int) {
	code := negated(reason, func() error {
		plan, err := found[*layout.Plan](handle, "plan")
		if err == nil {
			count = C.int(len(plan.Transfers))
		}
		return err
	})
	return orCode(code, count)
}

//export kvferry_go_plan_transfer
func kvferry_go_plan_transfer(handle unsafe.Pointer, index C.size_t, out *C.kvferry_plan_transfer_t, reason *C.char) C.int {
	return negated(reason, func() error {
		t, err := transferOf(handle, index)
		if err != nil {
			return err
		}
		if out == nil {
			return status.Errorf(status.InvalidArgument, "there is no room for the transfer: NULL")
		}
		*out = C.kvferry_plan_transfer_t{
			source: C.uint64_t(t.Source), destination: C.uint64_t(t.Destination), ranges: C.uint64_t(t.Runs), bytes: C.uint64_t(t.Bytes),
		}
		return nil
	})
}

//export kvferry_go_submit_plan
func kvferry_go_submit_plan(engine unsafe.Pointer, opcode C.int, target C.int32_t, plan unsafe.Pointer, index, limit C.size_t,
	batch *C.uint64_t, reason *C.char) C.int {
	return negated(reason, func() error {
		_, b, err := submitPlan(engine, opcode, target, plan, index, limit)
		if err == nil {
			*batch = C.uint64_t(b.ID())
		}
		return err
	})
}

//export kvferry_go_submit_plan_and_watch
func kvferry_go_submit_plan_and_watch(engine unsafe.Pointer, opcode C.int, target C.int32_t, plan unsafe.Pointer,
	index, limit C.size_t, batch *C.uint64_t, word *C.uint32_t, handle *unsafe.Pointer, reason *C.char) (result C.int) {
	code := negated(reason, func() error {
		defer expect(engine, target)()
		e, b, err := submitPlan(engine, opcode, target, plan, index, limit)
		if err != nil {
			return err
		}
		e.Assist(b, core.SegmentID(target))
		if result = startWatch(e, b, word, handle, true, reason); result == C.BATCH_RUNNING {
			*batch = C.uint64_t(b.ID())
		}
		return nil
	})
	return orCode(code, result)
}

// submitPlan makes a batch and submits one transfer of a plan. On an error there is no batch.
func submitPlan(engine unsafe.Pointer, opcode C.int, target C.int32_t, plan unsafe.Pointer, index, limit C.size_t) (
	*core.Engine, *core.Batch, error) {
	e, err := engineOf(engine)
	if err != nil {
		return nil, nil, err
	}
	t, err := transferOf(plan, index)
	if err != nil {
		return nil, nil, err
	}
	p := core.Planned{Opcode: core.Opcode(opcode), Target: core.SegmentID(target), Transfer: t}
	b, err := e.SubmitPlanned(p, int(min(limit, math.MaxInt32)))
	return e, b, err
}

// transferOf finds a transfer of a plan.
func transferOf(handle unsafe.Pointer, index C.size_t) (*layout.Transfer, error) {
	plan, err := found[*layout.Plan](handle, "plan")
	if err != nil {
		return nil, err
	}
	if index >= C.size_t(len(plan.Transfers)) {
		return nil, status.Errorf(status.InvalidArgument, "the plan has no transfer %d: it has %d", uint64(index), len(plan.Transfers))
	}
	return plan.Transfers[index], nil
}
