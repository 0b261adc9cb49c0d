package device

import (
	"fmt"
	"sync"
	"unsafe"
)

// Host is a runtime whose devices are host memory: code that uses a Runtime can be tested without a vendor's library. It is as strict
// as one: methods of a device fail on threads that are not bound to it, and copies beyond its memory, or beyond page-locked memory,
// fail.
type Host struct {
	// Batches is whether streams take batches. Traits are those of all devices, by default those of AscendCL. Both are set before
	// the first device is opened.
	Batches bool
	Traits  Traits

	name    string
	devices []*hostDevice

	mu    sync.Mutex
	bound map[int]*hostDevice // by thread
}

// NewHost returns a runtime with so many devices.
func NewHost(name string, devices int) *Host {
	h := &Host{name: name, bound: map[int]*hostDevice{}, Traits: Traits{Alignment: 64, Ways: WaysOf(Single, Batch, Gather, Matrix), Default: Gather}}
	for i := range devices {
		h.devices = append(h.devices, &hostDevice{host: h, name: fmt.Sprintf("%s:%d", name, i)})
	}
	return h
}

func (h *Host) Name() string { return h.name }

// Require never fails.
func (h *Host) Require() error { return nil }

// Locate finds device memory by its address; location is not used.
func (h *Host) Locate(addr uintptr, location string) (index int, found bool, err error) {
	for i, d := range h.devices {
		if d.finds(addr, 1, false) {
			return i, true, nil
		}
	}
	return 0, false, nil
}

func (h *Host) Open(index int) (Device, error) {
	if index < 0 || index >= len(h.devices) {
		return nil, fmt.Errorf("%s:%d: there are %d such devices", h.name, index, len(h.devices))
	}
	return h.devices[index], nil
}

// Allocate returns device memory for a test, as an application would have it. Free frees it. Both may be called on any thread.
func (h *Host) Allocate(index int, length uint64) ([]byte, error) {
	if _, err := h.Open(index); err != nil {
		return nil, err
	}
	return h.devices[index].allocate(length, false)
}

// Free frees memory that Allocate has returned.
func (h *Host) Free(memory []byte) error {
	addr := uintptr(unsafe.Pointer(unsafe.SliceData(memory)))
	index, found, _ := h.Locate(addr, "")
	if !found {
		return fmt.Errorf("%#x is not memory of a device", addr)
	}
	return h.devices[index].free(addr, false)
}

// Leaks describes everything that is allocated or open, one line for each.
func (h *Host) Leaks() []string {
	var leaks []string
	for _, d := range h.devices {
		leaks = append(leaks, d.leaks()...)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for thread, d := range h.bound {
		leaks = append(leaks, fmt.Sprintf("%s: thread %d is bound to it", d.name, thread))
	}
	return leaks
}
