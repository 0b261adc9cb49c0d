package device

import (
	"fmt"
	"sync"
	"unsafe"
)

// Host is a runtime whose devices are stretches of host memory: what is built on a Runtime can be used and tested without
// a vendor's library. It is as strict as one: methods of a device are refused on threads that are not bound to it, and
// copies that leave its memory, or page-locked memory, fail.
type Host struct {
	// Batches is whether streams take batches, and Traits are those of all devices: AscendCL's where they are not set.
	// They are set before the first device is opened.
	Batches bool
	Traits  Traits

	name    string
	devices []*hostDevice

	mu    sync.Mutex
	bound map[int]*hostDevice // by thread
}

// NewHost returns a runtime with so many devices.
func NewHost(name string, devices int) *Host {
	h := &Host{name: name, bound: map[int]*hostDevice{}, Traits: Traits{Alignment: 64, Gathers: true}}
	for i := range devices {
		h.devices = append(h.devices, &hostDevice{host: h, name: fmt.Sprintf("%s:%d", name, i)})
	}
	return h
}

func (h *Host) Name() string { return h.name }

// Require never fails.
func (h *Host) Require() error { return nil }

// Locate finds device memory; location is not needed for that.
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

// Allocate returns memory of a device as an application has it, to be given to Free. It may be called on any thread.
func (h *Host) Allocate(index int, length uint64) ([]byte, error) {
	if _, err := h.Open(index); err != nil {
		return nil, err
	}
	return h.devices[index].allocate(length, false)
}

// Free takes back what Allocate returned.
func (h *Host) Free(memory []byte) error {
	addr := uintptr(unsafe.Pointer(unsafe.SliceData(memory)))
	index, found, _ := h.Locate(addr, "")
	if !found {
		return fmt.Errorf("%#x is not memory of a device", addr)
	}
	return h.devices[index].free(addr, false)
}

// Leaks describes what is allocated or open, one line for each thing.
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
