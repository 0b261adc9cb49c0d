// Package driver is what the runtimes of all vendors have in common: a library that is opened at run time, is asked where
// memory is, and has devices.
package driver

// #include <stdlib.h>
import "C"

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/dl"
)

// Kind is a kind of device, and the library that stands behind it.
type Kind struct {
	Name     string   // what its locations begin with: "npu", of "npu:1"
	Device   string   // what one is called: "NPU"
	Library  string   // what the library is called: "AscendCL"
	File     string   // as the loader knows the library: "libascendcl.so"
	Variable string   // of the environment, that names another file
	Homes    []string // variables that name a folder with the file in its lib64
	Source   string   // what brings the library, "" where Homes say it

	// Use takes its functions from a library that was opened. It is called once for each.
	Use func(dl.Library) (Library, error)

	mu     sync.Mutex
	opened map[dl.Library]Library
}

// Library is a vendor's library that has been opened. It stays open until the process ends: device memory may outlive the
// engine that moved it. Its methods may be called from any goroutine, and leave what is current on its thread as it was.
type Library interface {
	// Devices returns how many devices the process may use: they have the numbers from 0. It initialises the library where
	// that was not done.
	Devices() (count int, err error)

	// Ask tells what memory at addr is. named is the device that its owner says it is on, or Unnamed: then the library may
	// not have been initialised, and is not. Where it cannot tell, the error says why.
	Ask(addr uintptr, named int) (Memory, error)

	// Open returns a device that there is.
	Open(index int) device.Device
}

// Caller is a Library with streams that can be waited with.
type Caller interface {
	// Call: see device.Ordering.
	Call(stream uintptr, f func()) error
}

// Memory is what a library says of an address.
type Memory interface {
	// On returns the device that it is on, if it is on one. named is as in Ask.
	On(named int) (index int, found bool, err error)

	// String is for logs.
	String() string
}

// Unnamed stands for the device of a location that names none.
const Unnamed = -1

// NameOf is a device as locations and errors have it: "npu:1".
func (k *Kind) NameOf(index int) string { return k.Name + ":" + strconv.Itoa(index) }

// named returns the number of the device that a location names.
func (k *Kind) named(location string) (int, error) {
	number, ok := strings.CutPrefix(location, k.Name)
	if !ok {
		return Unnamed, nil
	}
	index, err := strconv.ParseUint(strings.TrimPrefix(number, ":"), 10, 31)
	if err != nil || !strings.HasPrefix(number, ":") {
		return 0, status.Errorf(status.InvalidArgument, "location %q is malformed: those of %ss are %s, %s and so on",
			location, k.Device, k.NameOf(0), k.NameOf(1))
	}
	return int(index), nil
}

// expect checks that there is a device of that number.
func (k *Kind) expect(l Library, index int) error {
	count, err := l.Devices()
	if err != nil {
		return err
	}
	if index < 0 || index >= count {
		return status.Errorf(status.DeviceNotFound, "there is no %s: this process has %d %ss", k.NameOf(index), count, k.Device)
	}
	return nil
}

// search opens the library. With a file it is that or nothing; else the loader is asked, and then the vendor's own
// variables. The error has every place, each with the reason why it was not taken.
func (k *Kind) search(file string) (Library, error) {
	if file != "" {
		l, err := k.load(dl.Open(file))
		if err != nil {
			return nil, status.Errorf(status.DeviceNotFound, "%s cannot be opened: %s is %s: %w", k.Library, k.Variable, file, err)
		}
		return l, nil
	}
	l, err := k.load(dl.Open(k.File))
	if err == nil {
		return l, nil
	}
	failures := []error{fmt.Errorf("by the loader: %w", err)}
	for _, variable := range k.Homes {
		l, err := k.loadFrom(variable)
		if err == nil {
			return l, nil
		}
		failures = append(failures, err)
	}
	if k.Source != "" {
		failures = append(failures, fmt.Errorf("it comes with %s", k.Source))
	}
	return nil, status.Errorf(status.DeviceNotFound, "%s was not found: %w", k.Library, joined(failures))
}

// loadFrom opens the library of the installation that an environment variable names.
func (k *Kind) loadFrom(variable string) (Library, error) {
	home := getenv(variable)
	if home == "" {
		return nil, fmt.Errorf("%s is not set", variable)
	}
	path := filepath.Join(home, "lib64", k.File)
	l, err := k.load(dl.Open(path))
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

// loaded returns the library that the application has loaded, nil where it has none.
func (k *Kind) loaded() Library {
	handle, found := dl.Loaded(k.File)
	if !found {
		return nil
	}
	l, err := k.load(handle, nil)
	if err != nil {
		return nil // too old for us, and no concern of who has not asked for it
	}
	return l
}

// load returns the library behind a handle, which it takes over.
func (k *Kind) load(handle dl.Library, err error) (Library, error) {
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if known := k.opened[handle]; known != nil {
		handle.Close()
		return known, nil
	}
	l, err := k.Use(handle)
	if err != nil {
		handle.Close()
		return nil, err
	}
	if k.opened == nil {
		k.opened = map[dl.Library]Library{}
	}
	k.opened[handle] = l
	return l, nil
}

// Error is a call of a library that failed.
type Error struct {
	Call    string // the function, with the arguments that matter
	Code    int    // as the library has returned it
	Message string // what the library says of that, on one line; "" where that is nothing
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("%s failed with %d", e.Call, e.Code)
	}
	return fmt.Sprintf("%s failed with %d: %s", e.Call, e.Code, e.Message)
}

// FailedWith tells whether an error is a call's that returned that code.
func FailedWith(err error, code int) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// OnOwnThread runs f on an OS thread that nothing has used, and that ends with it: whatever is current on the caller's,
// or is left over on others, it neither sees nor changes.
func OnOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and not unlocked: the thread ends
		f()
	}()
	<-done
}
