package main

// #include "internal.h"
import "C"

import (
	"syscall"

	"kvferry/core/threads"
)

// init tells threads.c that the library is loaded.
func init() { C.kvferry_runtime_started() }

//export kvferry_go_threads_wanted
func kvferry_go_threads_wanted(way C.int) C.int { return C.int(threads.Wanted(int(way))) }

//export kvferry_go_reserve_threads
func kvferry_go_reserve_threads(way C.int) {
	threads.Reserve(int(way), func(count int) error {
		if failure := C.kvferry_probe_threads(C.int(count)); failure != 0 {
			return syscall.Errno(failure)
		}
		return nil
	})
}
