package cuda

// #include "cuda.h"
import "C"

import (
	"time"

	"kvferry/core/status"

	"golang.org/x/sys/unix"
)

// CUDA's waits have no time limit, and an event that a thread can sleep for raises an interrupt each time it happens,
// whether anybody waits for it or not. That takes 100 to 250 us from the processor that serves it, and from what runs
// there: without such events 64 KiB x 64 moves 1.15 to 1.2 times as fast, 1 MiB x 32 1.09 times (H200, 16 processors).
// So events are made without, and asked for:
//
//  1. at first again and again: a block is copied meanwhile;
//  2. then with pauses, in which the thread sleeps: from here on a wait costs the processor next to nothing. They grow with
//     the time that has gone by, so that what happens is noticed late by a fifth of what it took at most;
//  3. until the event has happened, or failed, or the time is up. CUDA knows nothing of the wait: none is left behind.
const (
	askTime      = 250 * time.Microsecond
	pauseShare   = 5 // of the time that has gone by: the first pause is 50 us
	longestPause = 100 * time.Millisecond
)

// event is a mark in a stream.
type event struct {
	gpu    *gpu
	handle C.uintptr_t
}

// Wait asks for the event once more when the time is up.
func (e *event) Wait(timeout time.Duration) (done bool, err error) {
	for start := time.Now(); ; {
		waited := time.Since(start)
		done, err = e.happened()
		if done || err != nil || waited >= timeout {
			return done, err
		}
		if waited >= askTime {
			pause(min(waited/pauseShare, longestPause, timeout-waited))
		}
	}
}

func (e *event) happened() (bool, error) {
	code := C.kvferry_cuda_query_event(e.gpu.library.cuda, e.handle)
	if code == C.CUDA_NOT_READY {
		return false, nil
	}
	err := e.gpu.failed(code, status.Context, "cuEventQuery()")
	return err == nil, err
}

// pause sleeps in the kernel: who waits is locked to a thread, which Go would wake by way of another one. A signal ends it
// early, which does no harm.
func pause(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil)
}

// Close gives the event up. If it has not happened yet, CUDA keeps what it needs of it until then.
func (e *event) Close() error {
	code := C.kvferry_cuda_destroy_event(e.gpu.library.cuda, e.handle)
	return e.gpu.failed(code, status.Context, "cuEventDestroy()")
}
