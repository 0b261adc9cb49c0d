package main

// #include "internal.h"
import "C"

import (
	"math"
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"
)

// rowsOf is an array of rows of five numbers in C's memory as a slice of Go structs with the layout of such a row.
func rowsOf[T any](what string, numbers C.numbers_t, count C.size_t) ([]T, error) {
	return entries(what, (*T)(unsafe.Pointer(numbers)), count)
}

// A row has five numbers: with another layout this does not compile.
var (
	_ [unsafe.Sizeof(core.PageRow{})]byte       = [5 * 8]byte{}
	_ [unsafe.Sizeof(core.ScatterRegion{})]byte = [5 * 8]byte{}
)

//export kvferry_go_submit_pages
func kvferry_go_submit_pages(engine unsafe.Pointer, opcode C.int, target C.int32_t, local, remote C.numbers_t, pages C.size_t,
	rows C.numbers_t, rowCount C.size_t, limit C.size_t, batch *C.uint64_t, reason *C.char) C.int {
	return negated(reason, func() error {
		_, b, err := submitPages(engine, opcode, target, local, remote, pages, rows, rowCount, limit)
		if err == nil {
			*batch = C.uint64_t(b.ID())
		}
		return err
	})
}

//export kvferry_go_submit_pages_and_watch
func kvferry_go_submit_pages_and_watch(engine unsafe.Pointer, opcode C.int, target C.int32_t, local, remote C.numbers_t,
	pages C.size_t, rows C.numbers_t, rowCount C.size_t, limit C.size_t, batch *C.uint64_t, word *C.uint32_t,
	handle *unsafe.Pointer, reason *C.char) (result C.int) {
	code := negated(reason, func() error {
		defer expect(engine, target)()
		e, b, err := submitPages(engine, opcode, target, local, remote, pages, rows, rowCount, limit)
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

// submitPages makes a batch and submits the requests of the pages. On an error there is no batch.
func submitPages(engine unsafe.Pointer, opcode C.int, target C.int32_t, local, remote C.numbers_t, pages C.size_t,
	rows C.numbers_t, rowCount, limit C.size_t) (*core.Engine, *core.Batch, error) {
	e, err := engineOf(engine)
	if err != nil {
		return nil, nil, err
	}
	p := core.Pages{Opcode: core.Opcode(opcode), Target: core.SegmentID(target)}
	if p.Local, err = entries("the list of local pages", (*uint64)(unsafe.Pointer(local)), pages); err != nil {
		return nil, nil, err
	}
	if p.Remote, err = entries("the list of remote pages", (*uint64)(unsafe.Pointer(remote)), pages); err != nil {
		return nil, nil, err
	}
	if p.Rows, err = rowsOf[core.PageRow]("the list of rows", rows, rowCount); err != nil {
		return nil, nil, err
	}
	b, err := e.SubmitPages(&p, int(min(limit, math.MaxInt32)))
	return e, b, err
}

//export kvferry_go_submit_scatter
func kvferry_go_submit_scatter(engine unsafe.Pointer, opcode C.int, segment C.text_t, regions C.numbers_t, regionCount C.size_t,
	local, remote, lengths C.numbers_t, count C.size_t, batch *C.uint64_t, reason *C.char) C.int {
	return negated(reason, func() error {
		return onSegment(engine, segment, func(e *core.Engine, name string) error {
			s, err := readScatter(opcode, regions, regionCount, local, remote, lengths, count)
			if err != nil {
				return err
			}
			b, err := e.SubmitScatter(name, s)
			if err == nil {
				*batch = C.uint64_t(b.ID())
			}
			return err
		})
	})
}

// readScatter makes slices of the arrays of kvferry_submit_scatter in C's memory.
func readScatter(opcode C.int, regions C.numbers_t, regionCount C.size_t, local, remote, lengths C.numbers_t,
	count C.size_t) (*core.Scatter, error) {
	if opcode != C.OPCODE_READ && opcode != C.OPCODE_WRITE {
		return nil, status.Errorf(status.InvalidArgument, "%d is no opcode", int(opcode))
	}
	rows, err := rowsOf[core.ScatterRegion]("the list of regions", regions, regionCount)
	if err != nil {
		return nil, err
	}
	// The requests of kvferry_submit, with offsets for addresses.
	a, err := readArrays(opcode, 0, local, remote, lengths, count)
	if err != nil {
		return nil, err
	}
	return &core.Scatter{
		Opcode: a.Opcode, Regions: rows, LocalOffsets: a.Local, RemoteOffsets: a.Remote, Lengths: a.Lengths,
	}, nil
}
