package ascend

// #include "acl.h"
import "C"

import (
	"time"

	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/driver"
)

// npu is one device. Threads that have set the same device share its default context; this package uses no other.
type npu struct {
	library *library
	index   int
}

// failed is the error of a call on the device, nil where the result is success.
func (d *npu) failed(result C.int, code status.Code, format string, args ...any) error {
	return npus.OnDevice(d.index, d.library.check(result, code, format, args...))
}

// Bind makes the device current on this thread. AscendCL counts how often a device is set, and releases it when it was
// reset as often. So Unbind undoes one Bind and nothing of the application's.
func (d *npu) Bind() error {
	code := C.kvferry_acl_set_device(d.library.acl, C.int32_t(d.index))
	return d.failed(code, status.DeviceNotFound, "aclrtSetDevice(%d)", d.index)
}

func (d *npu) Unbind() error {
	code := C.kvferry_acl_reset_device(d.library.acl, C.int32_t(d.index))
	return d.failed(code, status.Context, "aclrtResetDevice(%d)", d.index)
}

// alignment is required of both addresses of a copy within a device: acl_rt.h on aclrtMemcpyAsync. aclrtMalloc and
// aclrtMallocHost return memory that is aligned to it.
const alignment = 64

// Traits: to queue a copy between host and device is said to take an NPU many times as long as one within the device, even
// in a batch.
func (d *npu) Traits() device.Traits {
	ways := device.WaysOf(device.Single, device.Batch, device.Gather, device.Matrix)
	return device.Traits{Alignment: alignment, Ways: ways, Default: device.Gather}
}

func (d *npu) Allocate(length uint64) (uintptr, error) {
	result := C.kvferry_acl_malloc(d.library.acl, C.size_t(length))
	return uintptr(result.value), d.failed(result.code, status.Memory, "aclrtMalloc(%d bytes)", length)
}

func (d *npu) Free(addr uintptr) error {
	return d.failed(C.kvferry_acl_free(d.library.acl, C.uintptr_t(addr)), status.Memory, "aclrtFree(%#x)", addr)
}

func (d *npu) AllocatePinned(length uint64) (uintptr, error) {
	result := C.kvferry_acl_malloc_host(d.library.acl, C.size_t(length))
	return uintptr(result.value), d.failed(result.code, status.Memory, "aclrtMallocHost(%d bytes)", length)
}

func (d *npu) FreePinned(addr uintptr) error {
	return d.failed(C.kvferry_acl_free_host(d.library.acl, C.uintptr_t(addr)), status.Memory, "aclrtFreeHost(%#x)", addr)
}

func (d *npu) NewStream() (device.Stream, error) {
	result := C.kvferry_acl_create_stream(d.library.acl)
	if err := d.failed(result.code, status.Context, "aclrtCreateStream()"); err != nil {
		return nil, err
	}
	return &stream{npu: d, handle: result.value}, nil
}

var _ device.Timer = (*npu)(nil)

func (d *npu) Tables() *device.Tables { return d.library.tables.Of(d.index) }

// NewTimedEvent: events of aclrtCreateEvent have times.
func (d *npu) NewTimedEvent() (device.Event, error) { return d.NewEvent() }

func (d *npu) Elapsed(from, to device.Event) (time.Duration, error) {
	elapsed := C.kvferry_acl_elapsed(d.library.acl, from.(*event).handle, to.(*event).handle)
	return driver.Milliseconds(float32(elapsed.milliseconds)), d.failed(elapsed.code, status.Context, "aclrtEventElapsedTime()")
}

func (d *npu) NewEvent() (device.Event, error) {
	result := C.kvferry_acl_create_event(d.library.acl)
	if err := d.failed(result.code, status.Context, "aclrtCreateEvent()"); err != nil {
		return nil, err
	}
	return &event{npu: d, handle: result.value}, nil
}
