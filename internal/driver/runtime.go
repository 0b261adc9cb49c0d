package driver

import (
	"fmt"
	"strconv"
	"sync"

	"kvferry/core/device"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// Runtime is a vendor's library as the engine's device.Runtime.
type Runtime struct {
	kind *Kind
	file string
	log  *zap.Logger

	mu      sync.Mutex
	library Library // nil until it is opened
	warned  bool    // logged that the file cannot be opened
}

var _ device.Ordering = (*Runtime)(nil)

// New returns the runtime of a library file, "" for the one that is installed. Nothing is opened yet.
func New(kind *Kind, file string, log *zap.Logger) *Runtime {
	return &Runtime{kind: kind, file: file, log: log}
}

// Name is that of the kind.
func (r *Runtime) Name() string { return r.kind.Name }

// Require opens the library if it is not open yet: the file that New was given; without one, the library that the loader
// finds, or that of a folder that one of the kind's variables names. The error is a status.DeviceNotFound.
func (r *Runtime) Require() error {
	_, err := r.open()
	return err
}

func (r *Runtime) open() (Library, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.library != nil {
		return r.library, nil
	}
	l, err := r.kind.search(r.file)
	r.library = l
	return l, err
}

// present returns the library if it is open, or New was given a file, or the application has loaded it; nil otherwise.
func (r *Runtime) present() Library {
	if r.file == "" {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.library == nil {
			r.library = r.kind.loaded()
		}
		return r.library
	}
	l, err := r.open()
	if err != nil {
		r.warnOnce(err)
	}
	return l
}

func (r *Runtime) warnOnce(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.warned {
		r.log.Warn("no "+r.kind.Device+" memory can be moved", zap.Error(err))
	}
	r.warned = true
}

// Open returns a device, by its number.
func (r *Runtime) Open(index int) (device.Device, error) {
	l, err := r.open()
	if err != nil {
		return nil, err
	}
	if err := r.kind.expect(l, index); err != nil {
		return nil, err
	}
	return l.Open(index), nil
}

// Call: see device.Ordering. It fails with a library that is no Caller.
func (r *Runtime) Call(stream uintptr, f func()) error {
	l, err := r.open()
	if err != nil {
		return err
	}
	if library, able := l.(Caller); able {
		return library.Call(stream, f)
	}
	return status.Errorf(status.NotImplemented, "nothing can be done in the order of a stream of %s", r.kind.Library)
}

// The steps of finding the device that memory is on:
//
//  1. Locate parses the location that the owner gave: "npu:1" names a device, other locations name none;
//  2. it opens the library if a device is named, which must exist. If none is named, it uses the library only if that is
//     present; without the library there is no memory of such devices;
//  3. it asks the library. If no device is named, it does not initialise the library: an application that has not done so
//     has no such memory yet, and may want to initialise it in its own way;
//  4. it trusts the library's answer, and logs a location that differs. If the library cannot answer, it trusts the
//     location.

// Locate returns the device that has the memory at addr.
func (r *Runtime) Locate(addr uintptr, location string) (index int, found bool, err error) {
	named, err := r.kind.named(location)
	if err != nil {
		return 0, false, err
	}
	l, err := r.openFor(named)
	if l == nil || err != nil {
		return 0, false, err
	}
	m, err := l.Ask(addr, named)
	if err != nil {
		r.log.Debug(r.kind.Library+" does not say where memory is", address(addr), zap.String("location", location), zap.Error(err))
		return max(named, 0), named != Unnamed, nil
	}
	index, found, err = m.On(named)
	if err != nil {
		return 0, false, status.Errorf(status.NotSupportedTransport, "memory at %#x: %w", addr, err)
	}
	if named != Unnamed && (!found || index != named) {
		r.log.Warn("memory is not on the device of its location", address(addr), zap.String("said", location), zap.Stringer("is", m))
	}
	return index, found, nil
}

// openFor returns the library for memory in a location that names a device, or Unnamed; nil where no device is named and
// the library is not present.
func (r *Runtime) openFor(named int) (Library, error) {
	if named == Unnamed {
		return r.present(), nil
	}
	l, err := r.open()
	if err != nil {
		return nil, fmt.Errorf("memory on %s: %w", r.kind.NameOf(named), err)
	}
	return l, r.kind.expect(l, named)
}

func address(addr uintptr) zap.Field {
	return zap.String("address", "0x"+strconv.FormatUint(uint64(addr), 16))
}
