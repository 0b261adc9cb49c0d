// Package driver has what the runtimes of all vendors share: a library that is opened at run time, says where memory is,
// and has devices.
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

// Kind is a kind of device, and its vendor's library.
type Kind struct {
	Name     string   // the prefix of its locations: "npu", of "npu:1"
	Device   string   // the name of a device in texts: "NPU"
	Library  string   // the name of the library in texts: "AscendCL"
	File     string   // the library's name for the loader: "libascendcl.so"
	Variable string   // the environment variable that names another file
	Homes    []string // variables that name a folder with the file in its lib64
	Source   string   // what installs the library, for the error; "" where there are Homes

	// Use looks up the functions of an opened library. It is called once for each library.
	Use func(dl.Library) (Library, error)

	mu     sync.Mutex
	opened map[dl.Library]Library
}

// Library is an opened vendor's library. It stays open until the process ends: device memory may outlive the engine that
// moved it. Any goroutine may call its methods, which keep the thread's current device or context.
type Library interface {
	// Devices returns how many devices the process may use, numbered from 0. It initialises the library if need be.
	Devices() (count int, err error)

	// Ask returns what the library knows of the memory at addr. named is the device in the location that its owner gave,
	// or Unnamed: then Ask does not initialise the library. Where the library cannot answer, the error says why.
	Ask(addr uintptr, named int) (Memory, error)

	// Open returns a device, by a number below that of Devices.
	Open(index int) device.Device
}

// Caller is a Library that can run functions in the order of a stream.
type Caller interface {
	// Call: see device.Ordering.
	Call(stream uintptr, f func()) error
}

// Memory is a library's answer about an address.
type Memory interface {
	// On returns the device that the memory is on, if it is on one. named is as in Ask.
	On(named int) (index int, found bool, err error)

	// String describes it for logs.
	String() string
}

// Unnamed stands for the device of a location that names none.
const Unnamed = -1

// NameOf is the name of a device in locations and errors: "npu:1".
func (k *Kind) NameOf(index int) string { return k.Name + ":" + strconv.Itoa(index) }

// OnDevice adds the device's name to the error of a call on it; nil stays nil.
func (k *Kind) OnDevice(index int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", k.NameOf(index), err)
}

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

// expect fails if there is no device of that number.
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

// search opens the library: the given file and no other; without one, the library that the loader finds, or that of a
// folder that the vendor's variables name. The error lists each place, with the reason why it failed.
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

// joined is one error of several, in one line.
func joined(failures []error) error {
	all := failures[0]
	for _, next := range failures[1:] {
		all = fmt.Errorf("%w; %w", all, next)
	}
	return all
}

// getenv reads C's environment, which has the variables that the application has set since it started.
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
		return nil // it lacks functions, and the application did not ask for device memory
	}
	return l
}

// load returns the library of a handle, which it owns from then on.
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

// Error is a failed call of a library.
type Error struct {
	Call    string // the function, with the arguments that matter
	Code    int    // as the library returned it
	Message string // the library's text, on one line; "" where there is none
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("%s failed with %d", e.Call, e.Code)
	}
	return fmt.Sprintf("%s failed with %d: %s", e.Call, e.Code, e.Message)
}

// FailedWith returns whether an error is that of a call that returned the code.
func FailedWith(err error, code int) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// OnOwnThread runs f on a new OS thread, which ends with f. So f neither sees nor changes the current device or context of
// any other thread.
func OnOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and not unlocked: the thread ends
		f()
	}()
	<-done
}
