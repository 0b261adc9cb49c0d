package cuda

// #include "cuda.h"
import "C"

import (
	"time"

	"kvferry/core/status"

	"golang.org/x/sys/unix"
)

// CUDA's waits have no timeout. An event that a thread can sleep for raises an interrupt each time it completes, whether a
// thread waits for it or not. Each interrupt takes 100 to 250 us from the processor that serves it. Without such events
// 64 KiB x 64 moves 1.15 to 1.2 times as fast, 1 MiB x 32 1.09 times (H200, 16 processors). So events are made without
// interrupts, and Wait polls them:
//
//  1. for the first 250 us without a pause, in which a block is usually copied;
//  2. then with pauses, in which the thread sleeps, so that a wait takes next to no processor time. A pause is a fifth of
//     the time waited so far, so that Wait returns late by at most a fifth;
//  3. until the event is complete, or has failed, or the timeout has passed. CUDA knows nothing of the wait, so an
//     abandoned one leaves nothing behind.
const (
	pollTime     = 250 * time.Microsecond
	pauseShare   = 5 // a pause is this part of the time waited so far: the first is 50 us
	longestPause = 100 * time.Millisecond
)

// event is a mark in a stream.
type event struct {
	gpu    *gpu
	handle C.uintptr_t
}

// Wait polls the event once more when the timeout has passed.
func (e *event) Wait(timeout time.Duration) (done bool, err error) {
	for start := time.Now(); ; {
		waited := time.Since(start)
		done, err = e.complete()
		if done || err != nil || waited >= timeout {
			return done, err
		}
		if waited >= pollTime {
			pause(min(waited/pauseShare, longestPause, timeout-waited))
		}
	}
}

func (e *event) complete() (bool, error) {
	code := C.kvferry_cuda_query_event(e.gpu.library.cuda, e.handle)
	if code == C.CUDA_NOT_READY {
		return false, nil
	}
	err := e.gpu.failed(code, status.Context, "cuEventQuery()")
	return err == nil, err
}

// pause sleeps in the kernel. The waiting goroutine is locked to its thread, and Go would wake it by way of another thread.
// A signal ends the pause early, which does no harm.
func pause(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil)
}

// Close destroys the event. If it is not complete, CUDA keeps what it needs of it until then.
func (e *event) Close() error {
	code := C.kvferry_cuda_destroy_event(e.gpu.library.cuda, e.handle)
	return e.gpu.failed(code, status.Context, "cuEventDestroy()")
}
