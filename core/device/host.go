package device

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
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

// hostSpan is an allocation.
type hostSpan struct {
	memory []byte
	addr   uintptr
	pinned bool // page-locked memory of the host, and not memory of the device
}

type hostDevice struct {
	host *Host
	name string

	mu      sync.RWMutex // read-locked during copies: nothing is freed meanwhile
	spans   []hostSpan   // by address
	streams int
	events  int
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

func (d *hostDevice) Allocate(length uint64) (uintptr, error) { return d.allocateBound(length, false) }
func (d *hostDevice) AllocatePinned(length uint64) (uintptr, error) {
	return d.allocateBound(length, true)
}
func (d *hostDevice) Free(addr uintptr) error       { return d.freeBound(addr, false) }
func (d *hostDevice) FreePinned(addr uintptr) error { return d.freeBound(addr, true) }
func (d *hostDevice) Traits() Traits                { return d.host.Traits }

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

// search returns the index of the span that begins at addr, or where it would be. The lock is held.
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

// at is the memory from addr on; nil where it is not wholly in a span of the kind. The lock is held.
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

// resolve is the memory that a copy is about. The lock is held.
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

func (d *hostDevice) count(streams, events int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams += streams
	d.events += events
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

// hostStream is a queue of copies and events, and the goroutine that does them.
type hostStream struct {
	device  *hostDevice
	drained hostEvent
	ended   chan struct{} // the goroutine has

	mu     sync.Mutex
	work   sync.Cond // there is something in the queue, or closed was set
	queue  []hostStep
	closed bool
	failed error // the first failure; nothing is copied after it
}

// hostStep is a copy, or the happening of an event.
type hostStep struct {
	kind   Kind
	copy   Copy
	event  *hostEvent
	record uint64
}

func (s *hostStream) Copy(kind Kind, copies []Copy) (issued int, err error) {
	if err := s.device.check(); err != nil {
		return 0, err
	}
	for i, c := range copies {
		if err := s.accept(kind, c); err != nil {
			return i, err
		}
	}
	return len(copies), nil
}

func (s *hostStream) CopyBatch(kind Kind, copies []Copy) error {
	if !s.device.host.Batches || kind == WithinDevice {
		return ErrNoBatches
	}
	_, err := s.Copy(kind, copies)
	return err
}

func (s *hostStream) accept(kind Kind, c Copy) error {
	s.device.mu.RLock()
	_, _, err := s.device.resolve(kind, c)
	s.device.mu.RUnlock()
	if err != nil {
		return err
	}
	return s.push(hostStep{kind: kind, copy: c})
}

func (s *hostStream) push(step hostStep) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("%s: the stream is closed", s.device.name)
	}
	s.queue = append(s.queue, step)
	s.work.Signal()
	return nil
}

func (s *hostStream) Record(e Event) error {
	if err := s.device.check(); err != nil {
		return err
	}
	return s.record(e.(*hostEvent))
}

func (s *hostStream) record(e *hostEvent) error {
	return s.push(hostStep{event: e, record: e.next()})
}

func (s *hostStream) Drain(timeout time.Duration) error {
	if err := s.device.check(); err != nil {
		return err
	}
	if err := s.record(&s.drained); err != nil {
		return err
	}
	done, err := s.drained.await(timeout)
	if err == nil && !done {
		err = fmt.Errorf("%s: the stream is busy after %v", s.device.name, timeout)
	}
	return err
}

// Close drops what is queued, and waits for what has been taken from the queue.
func (s *hostStream) Close() error {
	if err := s.device.check(); err != nil {
		return err
	}
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.work.Signal()
	s.mu.Unlock()
	if again {
		return fmt.Errorf("%s: the stream is closed already", s.device.name)
	}
	<-s.ended
	s.device.count(-1, 0)
	return nil
}

func (s *hostStream) run() {
	defer close(s.ended)
	var steps []hostStep
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.closed {
			s.work.Wait()
		}
		if s.closed {
			s.mu.Unlock()
			return
		}
		steps, s.queue = s.queue, steps[:0]
		s.mu.Unlock()
		for i := range steps {
			s.do(&steps[i])
		}
	}
}

func (s *hostStream) do(step *hostStep) {
	switch {
	case step.event != nil:
		step.event.happen(step.record, s.failed)
	case s.failed == nil:
		s.device.mu.RLock()
		defer s.device.mu.RUnlock()
		dst, src, err := s.device.resolve(step.kind, step.copy)
		if err != nil { // freed since it was queued
			s.failed = err
			return
		}
		copy(dst, src)
	}
}

// hostEvent counts how often it was recorded, and which of these has happened.
type hostEvent struct {
	device *hostDevice
	signal chan struct{} // something has happened

	mu       sync.Mutex
	recorded uint64
	happened uint64
	failed   error
	timer    *time.Timer
}

func (e *hostEvent) next() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.recorded++
	return e.recorded
}

func (e *hostEvent) happen(record uint64, failed error) {
	e.mu.Lock()
	e.happened, e.failed = max(e.happened, record), failed
	e.mu.Unlock()
	select {
	case e.signal <- struct{}{}:
	default:
	}
}

func (e *hostEvent) state() (happened bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.recorded == 0:
		return false, errors.New("the event was never recorded")
	case e.happened < e.recorded:
		return false, nil
	}
	return true, e.failed
}

func (e *hostEvent) Wait(timeout time.Duration) (done bool, err error) {
	if err := e.device.check(); err != nil {
		return false, err
	}
	return e.await(timeout)
}

func (e *hostEvent) await(timeout time.Duration) (done bool, err error) {
	if done, err := e.state(); done || err != nil {
		return done, err
	}
	if e.timer == nil {
		e.timer = time.NewTimer(timeout)
	} else {
		e.timer.Reset(timeout)
	}
	defer e.timer.Stop()
	for {
		select {
		case <-e.signal:
			if done, err := e.state(); done || err != nil {
				return done, err
			}
		case <-e.timer.C:
			return e.state()
		}
	}
}

func (e *hostEvent) Close() error {
	if err := e.device.check(); err != nil {
		return err
	}
	e.device.count(0, -1)
	return nil
}
