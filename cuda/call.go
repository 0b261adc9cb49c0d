package cuda

// #include "cuda.h"
import "C"

import (
	"runtime"
	"time"
	"unsafe"

	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/driver"

	"github.com/mattn/go-pointer"
)

// The steps of a function that runs at a place in the application's stream:
//
//  1. Call queues a call of kvferry_cuda_reached in the stream, in the stream's own context;
//  2. when the stream has reached it, the driver calls that on a thread of its own, and the stream waits;
//  3. kvferry_cuda_reached, in Go, runs the function. When it returns, the stream goes on.
//
// Where the context has failed before step 2, the driver never calls, and the function stays in memory. That cannot pile up:
// a failed context refuses every later Call.
//
// While a stream waits for a function, nothing is freed: see AwaitCalls.

var _ driver.Caller = (*library)(nil)

// Call: see device.Ordering. The handles 0, 1 and 2 are default streams, of the current context.
func (l *library) Call(stream uintptr, f func()) error {
	runtime.LockOSThread() // the current context is the thread's
	defer runtime.UnlockOSThread()
	handle := C.uintptr_t(stream)
	if handle <= C.CUDA_STREAM_PER_THREAD {
		return l.launch(handle, f)
	}
	context := C.kvferry_cuda_stream_context(l.cuda, handle)
	if err := l.check(context.code, status.InvalidArgument, "cuStreamGetCtx(%#x)", stream); err != nil {
		return err
	}
	if err := l.check(C.kvferry_cuda_push(l.cuda, context.value), status.Context, "cuCtxPushCurrent()"); err != nil {
		return err
	}
	defer C.kvferry_cuda_pop(l.cuda) // its error is dropped: the call may be queued all the same
	return l.launch(handle, f)
}

// launch queues the call in a stream whose context is current.
func (l *library) launch(stream C.uintptr_t, f func()) error {
	capture := C.kvferry_cuda_capture(l.cuda, stream)
	if err := l.check(capture.code, status.Context, "cuStreamIsCapturing(%#x)", stream); err != nil {
		return err
	}
	if capture.value != C.CUDA_CAPTURES_NOTHING {
		return status.Errorf(status.InvalidArgument, "the stream %#x is being captured: a transfer cannot be part of a graph", stream)
	}
	handle := pointer.Save(func() {
		defer l.callEnded()
		f()
	})
	l.calls.Add(1)
	err := l.check(C.kvferry_cuda_call(l.cuda, stream, handle), status.Context, "cuLaunchHostFunc(%#x)", stream)
	if err != nil {
		l.callEnded()
		pointer.Unref(handle)
	}
	return err
}

var _ device.Quiet = (*gpu)(nil)

// AwaitCalls: see device.Quiet. cuMemFree and cuMemFreeHost wait for all streams of the context. If that has failed, calls that are
// still in its streams are forgotten: they never come.
func (d *gpu) AwaitCalls(limit time.Duration) {
	if d.library.calls.Load() == 0 {
		return
	}
	health, err := d.newEvent(C.CUDA_EVENT_DISABLE_TIMING)
	if err != nil {
		d.library.calls.Store(0)
		return
	}
	defer func() { _ = health.Close() }() // fails where the context has failed, which is said of what is freed
	for over := time.Now().Add(limit); d.library.calls.Load() > 0 && time.Now().Before(over); pause(time.Millisecond) {
		if _, err := health.complete(); err != nil {
			d.library.calls.Store(0)
			return
		}
	}
}

// callEnded counts a call that has returned, or was not queued. A context that has failed may have had it forgotten.
func (l *library) callEnded() {
	for n := l.calls.Load(); n > 0 && !l.calls.CompareAndSwap(n, n-1); n = l.calls.Load() {
	}
}

//export kvferry_cuda_reached
func kvferry_cuda_reached(handle unsafe.Pointer) {
	f := pointer.Restore(handle).(func())
	pointer.Unref(handle)
	f()
}
