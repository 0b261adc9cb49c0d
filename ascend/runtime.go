// Package ascend is the memory of Ascend NPUs, by way of AscendCL: libascendcl.so of CANN, opened at run time.
package ascend

// #cgo CFLAGS: -std=c99
import "C"

import (
	"strconv"
	"sync"

	"kvferry/core/device"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// Name is what the locations of NPU memory begin with.
const Name = "npu"

// Runtime is AscendCL, as the engine knows it.
type Runtime struct {
	file string
	log  *zap.Logger

	mu      sync.Mutex
	library *library // nil until it was opened
	warned  bool     // that the file cannot be opened
}

var _ device.Runtime = (*Runtime)(nil)

// New returns the runtime of a library file, "" for the one that CANN has installed. Nothing is opened yet.
func New(file string, log *zap.Logger) *Runtime { return &Runtime{file: file, log: log} }

// Name is "npu".
func (r *Runtime) Name() string { return Name }

// Require opens AscendCL if it is not open yet: the file that New was given; else libascendcl.so where the loader finds
// it, or in lib64 of $ASCEND_TOOLKIT_HOME or of $ASCEND_HOME_PATH. The error is a status.DeviceNotFound.
func (r *Runtime) Require() error {
	_, err := r.open()
	return err
}

func (r *Runtime) open() (*library, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.library != nil {
		return r.library, nil
	}
	l, err := search(r.file)
	r.library = l
	return l, err
}

// present returns AscendCL where it is of interest without having been asked for: it is open, or New was given a file, or
// the application has loaded it. Else nil.
func (r *Runtime) present() *library {
	if r.file == "" {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.library == nil {
			r.library = loaded()
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
		r.log.Warn("no NPU memory can be moved", zap.Error(err))
	}
	r.warned = true
}

// Open returns a device, by its number.
func (r *Runtime) Open(index int) (device.Device, error) {
	l, err := r.open()
	if err != nil {
		return nil, err
	}
	if err := l.expect(index); err != nil {
		return nil, err
	}
	return &npu{library: l, index: index}, nil
}

// expect checks that there is a device of that number.
func (l *library) expect(index int) error {
	count, err := l.devices()
	if err != nil {
		return err
	}
	if index < 0 || index >= count {
		return status.Errorf(status.DeviceNotFound, "there is no %s: this process has %d NPUs", nameOf(index), count)
	}
	return nil
}

// nameOf is a device as locations and errors have it: "npu:1".
func nameOf(index int) string { return Name + ":" + strconv.Itoa(index) }
