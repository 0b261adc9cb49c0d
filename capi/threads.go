package main

// #include "internal.h"
import "C"

import (
	"fmt"
	"syscall"

	"kvferry/core/status"
	"kvferry/core/threads"
)

// reserveThreads has the threads exist that the library needs, before there is an engine. It does so once in a process.
func reserveThreads() error {
	if err := threads.Reserve(probeThreads); err != nil {
		return status.Errorf(status.Context, "%w", err)
	}
	C.kvferry_threads_reserved()
	return nil
}

func probeThreads(count int) error {
	if failure := C.kvferry_probe_threads(C.int(count)); failure != 0 {
		return fmt.Errorf("%w: raise the pids limit of the container, or RLIMIT_NPROC", syscall.Errno(failure))
	}
	return nil
}
