package main

// #include "internal.h"
import "C"

import (
	"unsafe"

	"kvferry/core"
)

//export kvferry_go_register
func kvferry_go_register(engine, addr unsafe.Pointer, length C.size_t, location C.text_t, remote C.int, reason *C.char) C.int {
	return negatedLogged("registerLocalMemory", engine, reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		return e.Register(uintptr(addr), uint64(length), C.GoString(location), remote != 0)
	})
}

//export kvferry_go_register_for
func kvferry_go_register_for(engine unsafe.Pointer, list C.ranges_t, count C.size_t, location C.text_t, access C.int, reason *C.char) C.int {
	return negated(reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		ranges, err := rangesOf(list, count)
		if err != nil {
			return err
		}
		return e.RegisterFor(ranges, C.GoString(location), core.Access(access))
	})
}

//export kvferry_go_unregister_quietly
func kvferry_go_unregister_quietly(engine, addr unsafe.Pointer, reason *C.char) C.int {
	return negated(reason, func() error { return unregister(engine, addr) })
}

func unregister(engine, addr unsafe.Pointer) error {
	e, err := engineOf(engine)
	if err != nil {
		return err
	}
	return e.Unregister(uintptr(addr))
}

//export kvferry_go_unregister
func kvferry_go_unregister(engine, addr unsafe.Pointer, reason *C.char) C.int {
	return negatedLogged("unregisterLocalMemory", engine, reason, func() error { return unregister(engine, addr) })
}

//export kvferry_go_register_batch
func kvferry_go_register_batch(engine unsafe.Pointer, list *C.buffer_entry_t, count C.size_t, location C.text_t, reason *C.char) C.int {
	return negatedLogged("registerLocalMemoryBatch", engine, reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		ranges, err := rangesOf(list, count)
		if err != nil || len(ranges) == 0 {
			return err
		}
		return e.RegisterBatch(ranges, C.GoString(location))
	})
}

//export kvferry_go_unregister_batch
func kvferry_go_unregister_batch(engine unsafe.Pointer, list *unsafe.Pointer, count C.size_t, reason *C.char) C.int {
	return negatedLogged("unregisterLocalMemoryBatch", engine, reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		addrs, err := entries("the address list", (*uintptr)(unsafe.Pointer(list)), count)
		if err != nil || len(addrs) == 0 {
			return err
		}
		return e.UnregisterBatch(addrs)
	})
}

// rangesOf is a list from C, in place: buffer_entry_t has the layout of core.Range.
func rangesOf(list C.ranges_t, count C.size_t) ([]core.Range, error) {
	return entries("the buffer list", (*core.Range)(unsafe.Pointer(list)), count)
}
