package cuda

// #include "cuda.h"
import "C"

import (
	"errors"
	"sync/atomic"
	"time"

	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/driver"
)

// gpu is one device. Its streams, events and memory are made in its primary context, which the application's CUDA runtime
// uses, too. The context exists as long as somebody retains it.
type gpu struct {
	library *library
	index   int
	handle  atomic.Int32 // CUDA's handle of the device, from the first Bind on
	kernels kernels
}

// failed is the error of a call on the device, nil where the result is success.
func (d *gpu) failed(result C.int, code status.Code, format string, args ...any) error {
	return gpus.OnDevice(d.index, d.library.check(result, code, format, args...))
}

// Bind retains the primary context and makes it current on this thread. It also keeps the thread's calls apart from graphs
// that the application captures meanwhile.
func (d *gpu) Bind() error {
	if err := d.find(); err != nil {
		return err
	}
	context, err := d.retain()
	if err != nil {
		return err
	}
	err = d.failed(C.kvferry_cuda_push(d.library.cuda, context), status.Context, "cuCtxPushCurrent()")
	if err != nil {
		return errors.Join(err, d.release())
	}
	err = d.failed(C.kvferry_cuda_relax(d.library.cuda), status.Context, "cuThreadExchangeStreamCaptureMode()")
	if err != nil {
		return errors.Join(err, d.pop(), d.release())
	}
	return nil
}

// find learns CUDA's handle of the device.
func (d *gpu) find() error {
	found := C.kvferry_cuda_device(d.library.cuda, C.int(d.index))
	if err := d.failed(found.code, status.DeviceNotFound, "cuDeviceGet(%d)", d.index); err != nil {
		return err
	}
	d.handle.Store(int32(found.value))
	return nil
}

// Unbind releases the context even where an earlier step, or the context itself, has failed.
func (d *gpu) Unbind() error {
	restored := d.failed(C.kvferry_cuda_restore(d.library.cuda), status.Context, "cuThreadExchangeStreamCaptureMode()")
	return errors.Join(restored, d.pop(), d.release())
}

func (d *gpu) pop() error {
	return d.failed(C.kvferry_cuda_pop(d.library.cuda), status.Context, "cuCtxPopCurrent()")
}

func (d *gpu) retain() (context C.uintptr_t, err error) {
	handle := C.int(d.handle.Load())
	result := C.kvferry_cuda_retain(d.library.cuda, handle)
	return result.value, d.failed(result.code, status.Context, "cuDevicePrimaryCtxRetain(%d)", handle)
}

func (d *gpu) release() error {
	handle := C.int(d.handle.Load())
	return d.failed(C.kvferry_cuda_release(d.library.cuda, handle), status.Context, "cuDevicePrimaryCtxRelease(%d)", handle)
}

// Traits: a kernel makes any number of copies at the cost of a launch, where each copy of a batch costs by itself. Copies
// within the device are not cheaper than those to and from the host. The alignment is what kernels load and store at once.
func (d *gpu) Traits() device.Traits {
	ways := device.WaysOf(device.Single, device.Batch, device.Gather, device.Kernel)
	within := ways.Without(device.Gather)
	return device.Traits{Alignment: 16, AnyAddress: true, Ways: ways, Default: device.Kernel, Within: within, Asks: true}
}

func (d *gpu) Allocate(length uint64) (uintptr, error) {
	result := C.kvferry_cuda_malloc(d.library.cuda, C.size_t(length))
	return uintptr(result.value), d.failed(result.code, status.Memory, "cuMemAlloc(%d bytes)", length)
}

func (d *gpu) Free(addr uintptr) error {
	return d.failed(C.kvferry_cuda_free(d.library.cuda, C.uintptr_t(addr)), status.Memory, "cuMemFree(%#x)", addr)
}

func (d *gpu) AllocatePinned(length uint64) (uintptr, error) {
	result := C.kvferry_cuda_malloc_host(d.library.cuda, C.size_t(length))
	return uintptr(result.value), d.failed(result.code, status.Memory, "cuMemHostAlloc(%d bytes)", length)
}

func (d *gpu) FreePinned(addr uintptr) error {
	return d.failed(C.kvferry_cuda_free_host(d.library.cuda, C.uintptr_t(addr)), status.Memory, "cuMemFreeHost(%#x)", addr)
}

func (d *gpu) NewStream() (device.Stream, error) {
	context, err := d.retain()
	if err != nil {
		return nil, err
	}
	result := C.kvferry_cuda_create_stream(d.library.cuda)
	if err := d.failed(result.code, status.Context, "cuStreamCreateWithPriority()"); err != nil {
		return nil, errors.Join(err, d.release())
	}
	s := &stream{gpu: d, handle: result.value, context: context}
	drained, err := d.newEvent(C.CUDA_EVENT_DISABLE_TIMING)
	if err != nil {
		return nil, errors.Join(err, s.destroy())
	}
	s.drained = drained
	return s, nil
}

func (d *gpu) NewEvent() (device.Event, error) {
	e, err := d.newEvent(C.CUDA_EVENT_DISABLE_TIMING)
	if err != nil {
		return nil, err
	}
	return e, nil
}

var _ device.Timer = (*gpu)(nil)

func (d *gpu) Tables() *device.Tables { return d.library.tables.Of(d.index) }

func (d *gpu) NewTimedEvent() (device.Event, error) {
	e, err := d.newEvent(C.CUDA_EVENT_TIMED)
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (d *gpu) Elapsed(from, to device.Event) (time.Duration, error) {
	elapsed := C.kvferry_cuda_elapsed(d.library.cuda, from.(*event).handle, to.(*event).handle)
	return driver.Milliseconds(float32(elapsed.milliseconds)), d.failed(elapsed.code, status.Context, "cuEventElapsedTime()")
}

func (d *gpu) newEvent(flags C.uint) (*event, error) {
	result := C.kvferry_cuda_create_event(d.library.cuda, flags)
	if err := d.failed(result.code, status.Context, "cuEventCreate()"); err != nil {
		return nil, err
	}
	return &event{gpu: d, handle: result.value}, nil
}
