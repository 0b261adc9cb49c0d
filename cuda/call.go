package cuda

// #include "cuda.h"
import "C"

import (
	"runtime"
	"unsafe"

	"kvferry/core/status"
	"kvferry/internal/driver"

	"github.com/mattn/go-pointer"
)

// Something is done at a place in a stream of the application like this:
//
//  1. Call has the driver queue a call of C's kvferry_cuda_reached, in the stream's own context;
//  2. when the stream has come to it, the driver calls that on a thread of its own, and lets the stream wait;
//  3. reached, in Go, does what was to be done. When it returns the stream goes on.
//
// Where the context has failed by then there is no step 2, and what is held for it stays: there can be no more of it, since
// such a context refuses all that follows.

var _ driver.Caller = (*library)(nil)

// Call: see device.Ordering. The default stream is also that of a handle which the CUDA runtime has for one of the
// default streams, 1 or 2.
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
	defer C.kvferry_cuda_pop(l.cuda) // an error of it would say that nothing was queued, which may not be so
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
	handle := pointer.Save(f)
	err := l.check(C.kvferry_cuda_call(l.cuda, stream, handle), status.Context, "cuLaunchHostFunc(%#x)", stream)
	if err != nil {
		pointer.Unref(handle)
	}
	return err
}

//export kvferry_cuda_reached
func kvferry_cuda_reached(handle unsafe.Pointer) {
	f := pointer.Restore(handle).(func())
	pointer.Unref(handle)
	f()
}
