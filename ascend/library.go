package ascend

// #include "acl.h"
import "C"

import (
	"fmt"
	"strings"
	"sync"
	"unsafe"

	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/dl"
	"kvferry/internal/driver"
)

// library is an opened AscendCL. It stays initialised: aclFinalize would end it for the application, too.
type library struct {
	acl *C.struct_acl

	mu    sync.Mutex
	ready bool // initialised, and count is known
	count int  // of devices that the process may use

	tables driver.Tables
}

func use(handle dl.Library) (driver.Library, error) {
	table, err := handle.Table(C.sizeof_struct_acl, symbols)
	if err != nil {
		return nil, err
	}
	return &library{acl: (*C.struct_acl)(table)}, nil
}

// symbols are the functions of struct acl.
func symbols(yield func(dl.Symbol) bool) {
	for s := C.kvferry_acl_symbols; s.name != nil; s = (*C.struct_acl_symbol)(unsafe.Add(unsafe.Pointer(s), unsafe.Sizeof(*s))) {
		if !yield(dl.Symbol{Name: C.GoString(s.name), Offset: uintptr(s.offset), Optional: s.optional != 0}) {
			return
		}
	}
}

// Devices initialises AscendCL, once in a process. AscendCL refuses a second initialisation, the application's or ours, as
// repeated: that is no error.
func (l *library) Devices() (count int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ready {
		driver.OnOwnThread(func() { err = l.initialise() })
		l.ready = err == nil
	}
	return l.count, err
}

func (l *library) initialise() error {
	code := C.kvferry_acl_init(l.acl)
	err := l.check(code, status.Context, "aclInit(NULL)")
	if err != nil && !driver.FailedWith(err, C.ACL_REPEATED_INITIALIZATION) {
		return err
	}
	result := C.kvferry_acl_count(l.acl)
	l.count = int(result.value)
	return l.check(result.code, status.DeviceNotFound, "aclrtGetDeviceCount()")
}

func (l *library) Open(index int) device.Device { return &npu{library: l, index: index} }

// check returns the error of a code, nil for success. It runs on the thread of the call, whose message AscendCL keeps.
func (l *library) check(result C.int, code status.Code, format string, args ...any) error {
	if result == C.ACL_SUCCESS {
		return nil
	}
	message := strings.Join(strings.Fields(C.GoString(C.kvferry_acl_message(l.acl))), " ")
	return status.Errorf(code, "%w", &driver.Error{Call: fmt.Sprintf(format, args...), Code: int(result), Message: message})
}
