package driver

import (
	"fmt"
	"strconv"
	"sync"

	"kvferry/core/device"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// Runtime is a vendor's library, as the engine knows it.
type Runtime struct {
	kind *Kind
	file string
	log  *zap.Logger

	mu      sync.Mutex
	library Library // nil until it was opened
	warned  bool    // that the file cannot be opened
}

var _ device.Ordering = (*Runtime)(nil)

// New returns the runtime of a library file, "" for the one that is installed. Nothing is opened yet.
func New(kind *Kind, file string, log *zap.Logger) *Runtime {
	return &Runtime{kind: kind, file: file, log: log}
}

// Name is that of the kind.
func (r *Runtime) Name() string { return r.kind.Name }

// Require opens the library if it is not open yet: the file that New was given; else the kind's where the loader finds it,
// or one of the kind's variables leads to it. The error is a status.DeviceNotFound.
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

// present returns the library where it is of interest without having been asked for: it is open, or New was given a file,
// or the application has loaded it. Else nil.
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

// Call: see device.Ordering. Libraries that are no Caller refuse it.
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

// Where memory is is found out like this:
//
//  1. the location that its owner gave is read: "npu:1" names a device, anything else names none;
//  2. the library is opened where a device is named, which must be there, or where it is present anyway. Where it is not,
//     no memory is that of such a device;
//  3. the library is asked. Where no device is named it is not initialised for that: an application that has not done so
//     yet has no such memory, and may want to do it in its own way;
//  4. what it says counts, and a location that says otherwise is logged. Where it cannot say, the location is believed.

// Locate tells which device has the memory at addr.
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
		r.log.Warn("memory is not where it is said to be", address(addr), zap.String("said", location), zap.Stringer("is", m))
	}
	return index, found, nil
}

// openFor returns the library for memory that is said to be on a device; nil where it is not, and the library is not
// present.
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
