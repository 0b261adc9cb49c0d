package ascend

// #include <stdlib.h>
// #include "acl.h"
import "C"

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"kvferry/core/status"
	"kvferry/internal/dl"
)

// fileName is what CANN calls AscendCL.
const fileName = "libascendcl.so"

// library is an AscendCL that has been opened. It stays open, and initialised, until the process ends: aclFinalize would
// take it from the application too, and device memory may outlive the engine that moved it.
type library struct {
	acl *C.struct_acl

	mu    sync.Mutex
	ready bool // initialised, and count known
	count int  // of devices that the process may use
}

// libraries are those that have been opened.
var libraries = struct {
	sync.Mutex
	opened map[dl.Library]*library
}{opened: map[dl.Library]*library{}}

// search opens AscendCL. With a file it is that or nothing; else the loader is asked, and then CANN's own variables. The
// error has every place, each with the reason why it was not taken.
func search(file string) (*library, error) {
	if file != "" {
		l, err := load(dl.Open(file))
		if err != nil {
			return nil, status.Errorf(status.DeviceNotFound, "AscendCL cannot be opened: KVFERRY_ASCENDCL is %s: %w", file, err)
		}
		return l, nil
	}
	l, err := load(dl.Open(fileName))
	if err == nil {
		return l, nil
	}
	failures := []error{fmt.Errorf("by the loader: %w", err)}
	for _, variable := range []string{"ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"} {
		l, err := loadFrom(variable)
		if err == nil {
			return l, nil
		}
		failures = append(failures, err)
	}
	return nil, status.Errorf(status.DeviceNotFound, "AscendCL was not found: %w", joined(failures))
}

// loadFrom opens the AscendCL of the installation that an environment variable names.
func loadFrom(variable string) (*library, error) {
	home := getenv(variable)
	if home == "" {
		return nil, fmt.Errorf("%s is not set", variable)
	}
	path := filepath.Join(home, "lib64", fileName)
	l, err := load(dl.Open(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", variable, path, err)
	}
	return l, nil
}

// joined is several errors in one line.
func joined(failures []error) error {
	all := failures[0]
	for _, next := range failures[1:] {
		all = fmt.Errorf("%w; %w", all, next)
	}
	return all
}

// getenv reads the environment that C sees: what the application's own code has set since it started counts.
func getenv(variable string) string {
	name := C.CString(variable)
	defer C.free(unsafe.Pointer(name))
	return C.GoString(C.getenv(name))
}

// loaded returns the AscendCL that the application has loaded, nil where it has none.
func loaded() *library {
	handle, found := dl.Loaded(fileName)
	if !found {
		return nil
	}
	l, err := load(handle, nil)
	if err != nil {
		return nil // too old for us, and no concern of who has not asked for it
	}
	return l
}

// load returns the library behind a handle, which it takes over.
func load(handle dl.Library, err error) (*library, error) {
	if err != nil {
		return nil, err
	}
	libraries.Lock()
	defer libraries.Unlock()
	if known := libraries.opened[handle]; known != nil {
		handle.Close()
		return known, nil
	}
	acl, err := functions(handle)
	if err != nil {
		handle.Close()
		return nil, err
	}
	l := &library{acl: acl}
	libraries.opened[handle] = l
	return l, nil
}

// functions looks up all functions of the library, one by one. The table is C's, and for the caller to free.
func functions(handle dl.Library) (*C.struct_acl, error) {
	table := C.calloc(1, C.sizeof_struct_acl)
	for symbol := C.kvferry_acl_symbols; symbol.name != nil; symbol = next(symbol) {
		name := C.GoString(symbol.name)
		address := handle.Symbol(name)
		if address == nil && symbol.optional == 0 {
			C.free(table)
			return nil, fmt.Errorf("it has no function %s", name)
		}
		*(*unsafe.Pointer)(unsafe.Add(table, symbol.offset)) = address
	}
	return (*C.struct_acl)(table), nil
}

func next(symbol *C.struct_acl_symbol) *C.struct_acl_symbol {
	return (*C.struct_acl_symbol)(unsafe.Add(unsafe.Pointer(symbol), unsafe.Sizeof(*symbol)))
}

// devices returns how many devices the process may use: they have the numbers from 0. aclInit is called once in a
// process. When the application has done so before, it fails as repeated, and for an application that comes later too:
// neither is an error.
func (l *library) devices() (count int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ready {
		onOwnThread(func() { err = l.initialise() })
		l.ready = err == nil
	}
	return l.count, err
}

func (l *library) initialise() error {
	code := C.kvferry_acl_init(l.acl)
	if err := l.check(code, status.Context, "aclInit(NULL)"); err != nil && !failedWith(err, C.ACL_REPEATED_INITIALIZATION) {
		return err
	}
	result := C.kvferry_acl_count(l.acl)
	l.count = int(result.value)
	return l.check(result.code, status.DeviceNotFound, "aclrtGetDeviceCount()")
}

// Error is a call of AscendCL that failed.
type Error struct {
	Call    string // the function, with the arguments that matter
	Code    int    // as AscendCL has returned it
	Message string // what aclGetRecentErrMsg said, on one line; "" where that was nothing
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("%s failed with %d", e.Call, e.Code)
	}
	return fmt.Sprintf("%s failed with %d: %s", e.Call, e.Code, e.Message)
}

// check makes an error of a code: nil for success. Called on the thread of the call, which is whose message it takes.
func (l *library) check(result C.int, code status.Code, format string, args ...any) error {
	if result == C.ACL_SUCCESS {
		return nil
	}
	message := strings.Join(strings.Fields(C.GoString(C.kvferry_acl_message(l.acl))), " ")
	return status.Errorf(code, "%w", &Error{Call: fmt.Sprintf(format, args...), Code: int(result), Message: message})
}

// failedWith tells whether an error is a call's that returned that code.
func failedWith(err error, code int) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// onOwnThread runs f on an OS thread that nothing has used, and that ends with it: whatever is current on the caller's,
// or is left over on others, it neither sees nor changes.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and not unlocked: the thread ends
		f()
	}()
	<-done
}
