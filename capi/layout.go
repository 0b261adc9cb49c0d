package main

// #include "internal.h"
import "C"

import (
	"unsafe"

	"kvferry/core"
)

// Arrays of these C structs are read as arrays of the Go structs, so the layouts must be the same. This file does not compile if
// they differ.
var (
	request  core.Request
	requestC C.transfer_request_t
	area     core.Range
	areaC    C.buffer_entry_t
)

var (
	_ [unsafe.Sizeof(request)]byte          = [unsafe.Sizeof(requestC)]byte{}
	_ [unsafe.Offsetof(request.Opcode)]byte = [unsafe.Offsetof(requestC.opcode)]byte{}
	_ [unsafe.Offsetof(request.Local)]byte  = [unsafe.Offsetof(requestC.source)]byte{}
	_ [unsafe.Offsetof(request.Target)]byte = [unsafe.Offsetof(requestC.target_id)]byte{}
	_ [unsafe.Offsetof(request.Remote)]byte = [unsafe.Offsetof(requestC.target_offset)]byte{}
	_ [unsafe.Offsetof(request.Length)]byte = [unsafe.Offsetof(requestC.length)]byte{}
	_ [unsafe.Sizeof(area)]byte             = [unsafe.Sizeof(areaC)]byte{}
	_ [unsafe.Offsetof(area.Addr)]byte      = [unsafe.Offsetof(areaC.addr)]byte{}
	_ [unsafe.Offsetof(area.Length)]byte    = [unsafe.Offsetof(areaC.length)]byte{}
	_ [unsafe.Sizeof(request.Opcode)]byte   = [unsafe.Sizeof(requestC.opcode)]byte{}
	_ [unsafe.Sizeof(request.Target)]byte   = [unsafe.Sizeof(requestC.target_id)]byte{}
	_ [unsafe.Sizeof(request.Length)]byte   = [unsafe.Sizeof(requestC.length)]byte{}
	_ [unsafe.Sizeof(area.Length)]byte      = [unsafe.Sizeof(areaC.length)]byte{}
	_ [C.STATUS_WAITING]byte                = [core.Waiting]byte{}
	_ [C.STATUS_COMPLETED]byte              = [core.Completed]byte{}
	_ [C.STATUS_TIMEOUT]byte                = [core.TimedOut]byte{}
	_ [C.STATUS_FAILED]byte                 = [core.Failed]byte{}
	_ [C.OPCODE_READ]byte                   = [core.Read]byte{}
	_ [C.OPCODE_WRITE]byte                  = [core.Write]byte{}
)
