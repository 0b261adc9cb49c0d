package cuda

// #include "cuda.h"
import "C"

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/dl"
	"kvferry/internal/driver"
)

// library is an opened CUDA driver.
type library struct {
	cuda   *C.struct_cuda
	tables driver.Tables
	calls  atomic.Int64 // functions of Call that have not returned
}

func use(handle dl.Library) (driver.Library, error) {
	table, err := handle.Table(C.sizeof_struct_cuda, symbols)
	if err != nil {
		return nil, err
	}
	return &library{cuda: (*C.struct_cuda)(table)}, nil
}

// symbols are the functions of struct cuda.
func symbols(yield func(dl.Symbol) bool) {
	for s := C.kvferry_cuda_symbols; s.name != nil; s = (*C.struct_cuda_symbol)(unsafe.Add(unsafe.Pointer(s), unsafe.Sizeof(*s))) {
		if !yield(dl.Symbol{Name: C.GoString(s.name), Offset: uintptr(s.offset), Optional: s.optional != 0}) {
			return
		}
	}
}

// Devices initialises CUDA at each call: that makes no context, and it fails in a process that was forked from one that uses
// CUDA.
func (l *library) Devices() (count int, err error) {
	code := C.kvferry_cuda_init(l.cuda)
	err = l.check(code, status.DeviceNotFound, "cuInit(0)")
	if code == C.CUDA_NOT_INITIALIZED {
		err = fmt.Errorf("%w (CUDA cannot be used in a process that was forked from one that uses it)", err)
	}
	if err != nil {
		return 0, err
	}
	result := C.kvferry_cuda_count(l.cuda)
	return int(result.value), l.check(result.code, status.DeviceNotFound, "cuDeviceGetCount()")
}

func (l *library) Open(index int) device.Device { return &gpu{library: l, index: index} }

// check returns the error of a code, nil for success.
func (l *library) check(result C.int, code status.Code, format string, args ...any) error {
	if result == C.CUDA_SUCCESS {
		return nil
	}
	return status.Errorf(code, "%w", &driver.Error{Call: fmt.Sprintf(format, args...), Code: int(result), Message: l.describe(result)})
}

// describe is an error's name and text.
func (l *library) describe(result C.int) string {
	name, text := C.GoString(C.kvferry_cuda_error_name(l.cuda, result)), C.GoString(C.kvferry_cuda_error_text(l.cuda, result))
	if name == "" || text == "" {
		return name + text
	}
	return name + ": " + text
}
