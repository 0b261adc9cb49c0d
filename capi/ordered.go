package main

// #include "internal.h"
import "C"

import "unsafe"

//export kvferry_go_transfer_on_stream
func kvferry_go_transfer_on_stream(engine unsafe.Pointer, kind C.text_t, stream C.uintptr_t, opcode C.int, target C.int32_t,
	local, remote, lengths C.numbers_t, count C.size_t, reason *C.char) C.int {
	return negated(reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		runtime, err := readText("the kind of device", kind)
		if err != nil {
			return err
		}
		a, err := readArrays(opcode, target, local, remote, lengths, count)
		if err != nil {
			return err
		}
		return e.Order(runtime, uintptr(stream), &a)
	})
}
