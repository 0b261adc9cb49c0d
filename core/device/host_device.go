package device

import (
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

type hostDevice struct {
	host *Host
	name string

	mu      sync.RWMutex // read-locked during copies: nothing is freed meanwhile
	spans   []hostSpan   // by address
	streams int
	events  int
}

// hostSpan is an allocation.
type hostSpan struct {
	memory []byte
	addr   uintptr
	pinned bool // page-locked host memory; otherwise device memory
}

func (d *hostDevice) Bind() error {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	thread := unix.Gettid()
	if other := d.host.bound[thread]; other != nil {
		return fmt.Errorf("%s: thread %d is bound to %s", d.name, thread, other.name)
	}
	d.host.bound[thread] = d
	return nil
}

func (d *hostDevice) Unbind() error {
	if err := d.check(); err != nil {
		return err
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	delete(d.host.bound, unix.Gettid())
	return nil
}

// check fails on threads that are not bound to the device.
func (d *hostDevice) check() error {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if thread := unix.Gettid(); d.host.bound[thread] != d {
		return fmt.Errorf("%s: thread %d is not bound to it", d.name, thread)
	}
	return nil
}

func (d *hostDevice) Traits() Traits { return d.host.Traits }

func (d *hostDevice) Allocate(length uint64) (uintptr, error) { return d.allocateBound(length, false) }

func (d *hostDevice) AllocatePinned(length uint64) (uintptr, error) {
	return d.allocateBound(length, true)
}

func (d *hostDevice) allocateBound(length uint64, pinned bool) (uintptr, error) {
	if err := d.check(); err != nil {
		return 0, err
	}
	memory, err := d.allocate(length, pinned)
	return uintptr(unsafe.Pointer(unsafe.SliceData(memory))), err
}

func (d *hostDevice) allocate(length uint64, pinned bool) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("%s: allocating %d bytes: %w", d.name, length, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	addr := uintptr(unsafe.Pointer(unsafe.SliceData(memory)))
	i, _ := d.search(addr)
	d.spans = slices.Insert(d.spans, i, hostSpan{memory, addr, pinned})
	return memory, nil
}

func (d *hostDevice) Free(addr uintptr) error { return d.freeBound(addr, false) }

func (d *hostDevice) FreePinned(addr uintptr) error { return d.freeBound(addr, true) }

func (d *hostDevice) freeBound(addr uintptr, pinned bool) error {
	if err := d.check(); err != nil {
		return err
	}
	return d.free(addr, pinned)
}

func (d *hostDevice) free(addr uintptr, pinned bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, found := d.search(addr)
	if !found || d.spans[i].pinned != pinned {
		return fmt.Errorf("%s: freeing %#x, where no such memory begins", d.name, addr)
	}
	memory := d.spans[i].memory
	d.spans = slices.Delete(d.spans, i, i+1)
	return unix.Munmap(memory)
}

// search returns the index of the span that begins at addr, or the index where it would be inserted. The lock is held.
func (d *hostDevice) search(addr uintptr) (index int, found bool) {
	return slices.BinarySearchFunc(d.spans, addr, func(s hostSpan, addr uintptr) int {
		switch {
		case s.addr < addr:
			return -1
		case s.addr > addr:
			return 1
		}
		return 0
	})
}

// at is the memory from addr on; nil if it is not in one span of the kind. The lock is held.
func (d *hostDevice) at(addr uintptr, length uint64, pinned bool) []byte {
	i, found := d.search(addr)
	if !found {
		i--
	}
	if i < 0 || d.spans[i].pinned != pinned {
		return nil
	}
	s := &d.spans[i]
	offset := uint64(addr - s.addr)
	if offset > uint64(len(s.memory)) || length > uint64(len(s.memory))-offset {
		return nil
	}
	return s.memory[offset:][:length:length]
}

func (d *hostDevice) finds(addr uintptr, length uint64, pinned bool) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.at(addr, length, pinned) != nil
}

// resolve finds the memory of a copy. The lock is held.
func (d *hostDevice) resolve(kind Kind, c Copy) (dst, src []byte, err error) {
	dst, src = d.at(c.Dst, c.Length, kind == DeviceToHost), d.at(c.Src, c.Length, kind == HostToDevice)
	switch {
	case dst == nil:
		err = fmt.Errorf("%s: copying %v: destination %#x+%d is not such memory", d.name, kind, c.Dst, c.Length)
	case src == nil:
		err = fmt.Errorf("%s: copying %v: source %#x+%d is not such memory", d.name, kind, c.Src, c.Length)
	case kind == WithinDevice && (c.Dst|c.Src)%d.host.Traits.Alignment != 0:
		err = fmt.Errorf("%s: copying %v: %#x or %#x is not aligned to %d", d.name, kind, c.Dst, c.Src, d.host.Traits.Alignment)
	}
	return dst, src, err
}

func (d *hostDevice) NewStream() (Stream, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	d.count(1, 0)
	s := &hostStream{device: d, ended: make(chan struct{}), drained: hostEvent{device: d, signal: make(chan struct{}, 1)}}
	s.work.L = &s.mu
	go s.run()
	return s, nil
}

func (d *hostDevice) NewEvent() (Event, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	d.count(0, 1)
	return &hostEvent{device: d, signal: make(chan struct{}, 1)}, nil
}

func (d *hostDevice) count(streams, events int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams += streams
	d.events += events
}

func (d *hostDevice) leaks() []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var leaks []string
	for _, s := range d.spans {
		leaks = append(leaks, fmt.Sprintf("%s: %d bytes at %#x, page-locked: %v", d.name, len(s.memory), s.addr, s.pinned))
	}
	if d.streams > 0 || d.events > 0 {
		leaks = append(leaks, fmt.Sprintf("%s: %d streams, %d events", d.name, d.streams, d.events))
	}
	return leaks
}
