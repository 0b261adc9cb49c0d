package main

// #include "internal.h"
import "C"

import (
	"unsafe"

	"kvferry/core"
)

// onSegment runs f with a live engine and a segment's name.
func onSegment(engine unsafe.Pointer, segment C.text_t, f func(e *core.Engine, name string) error) error {
	e, err := engineOf(engine)
	if err != nil {
		return err
	}
	name, err := readText("the segment name", segment)
	if err != nil {
		return err
	}
	return f(e, name)
}

//export kvferry_go_open_segment
func kvferry_go_open_segment(engine unsafe.Pointer, segment C.text_t, reason *C.char) C.int32_t {
	return openSegment("openSegment", engine, segment, reason, (*core.Engine).OpenSegment)
}

//export kvferry_go_open_segment_no_cache
func kvferry_go_open_segment_no_cache(engine unsafe.Pointer, segment C.text_t, reason *C.char) C.int32_t {
	return openSegment("openSegmentNoCache", engine, segment, reason, (*core.Engine).OpenSegmentNoCache)
}

// openSegment returns the segment's id, or a negated code.
func openSegment(function string, engine unsafe.Pointer, segment C.text_t, reason *C.char,
	open func(*core.Engine, string) (core.SegmentID, error)) (id C.int32_t) {
	code := negatedLogged(function, engine, reason, func() error {
		return onSegment(engine, segment, func(e *core.Engine, name string) error {
			opened, err := open(e, name)
			id = C.int32_t(opened)
			return err
		})
	})
	return orCode(code, id)
}

//export kvferry_go_close_segment
func kvferry_go_close_segment(engine unsafe.Pointer, reason *C.char) C.int {
	return checkEngine("closeSegment", engine, reason)
}

//export kvferry_go_remove_segment
func kvferry_go_remove_segment(engine unsafe.Pointer, segment C.text_t, reason *C.char) C.int {
	return negatedLogged("removeLocalSegment", engine, reason, func() error {
		return onSegment(engine, segment, (*core.Engine).RemoveLocalSegment)
	})
}

//export kvferry_go_sync_segments
func kvferry_go_sync_segments(engine unsafe.Pointer, reason *C.char) C.int {
	return negatedLogged("syncSegmentCache", engine, reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		return e.SyncSegments()
	})
}

//export kvferry_go_probe
func kvferry_go_probe(engine unsafe.Pointer, segment C.text_t, reason *C.char) C.int {
	return negated(reason, func() error { return onSegment(engine, segment, (*core.Engine).Probe) })
}

//export kvferry_go_first_buffer
func kvferry_go_first_buffer(engine unsafe.Pointer, segment C.text_t, reason *C.char) (addr C.uint64_t) {
	run(reason, func() error {
		return onSegment(engine, segment, func(e *core.Engine, name string) error {
			first, err := e.FirstBuffer(name)
			addr = C.uint64_t(first)
			return err
		})
	})
	return addr
}
