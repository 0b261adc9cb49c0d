package simtest

import "C"

import (
	"runtime"
	"testing"
	"unsafe"

	"kvferry/internal/driver"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// api is a runtime, as an application calls it. Its functions are called on the thread of a Device.
type api struct {
	kind string // as build_library.py calls it
	file string // the name of its library
	// runtime is the library as the engine knows it
	runtime func(file string, log *zap.Logger) *driver.Runtime
	// enter makes the device the thread's own, leave takes that back
	enter, leave func(*Device)
	alloc        func(d *Device, n int) uintptr
	free         func(d *Device, addr uintptr)
	write        func(d *Device, addr uintptr, b []byte)
	read         func(d *Device, addr uintptr, b []byte)
	current      func(t testing.TB, s *simulator) (index int, set bool)
}

// Device is a device as an application uses it: on one OS thread of its own, on which it has set the device, by calls of
// the runtime that have nothing to do with those of the engine. What it allocated is freed at the end of the test. Its
// methods may be called from any goroutine that may end the test.
type Device struct {
	t     testing.TB
	sim   *simulator
	index int
	tasks chan func()
	ended chan struct{}      // closed when the thread ends
	live  map[uintptr]func() // what frees it; touched on the thread only
}

// NewDevice returns a device by its number, set on a new thread.
func NewDevice(t testing.TB, index int) *Device {
	t.Helper()
	d := &Device{t: t, sim: current(t), index: index, live: map[uintptr]func(){}}
	d.tasks, d.ended = make(chan func()), make(chan struct{})
	go d.run()
	t.Cleanup(func() {
		defer func() {
			close(d.tasks)
			<-d.ended
		}()
		d.close()
	})
	d.Do(func() { d.sim.api.enter(d) })
	return d
}

// run is the thread's life. It ends with it, as it is not unlocked.
func (d *Device) run() {
	defer close(d.ended)
	runtime.LockOSThread()
	for task := range d.tasks {
		task()
	}
}

func (d *Device) close() {
	d.Do(func() {
		for _, free := range d.live {
			free()
		}
		d.sim.api.leave(d)
	})
}

// Do runs f on the thread of the device, which ends if f ends the test.
func (d *Device) Do(f func()) {
	d.t.Helper()
	done := make(chan struct{})
	task := func() {
		defer close(done)
		f()
	}
	select {
	case d.tasks <- task:
		<-done
	case <-d.ended:
		require.Fail(d.t, "the thread of the device has ended")
	}
}

// call has f call a function, on the thread of the device. It must not fail.
func (d *Device) call(function string, f func(address unsafe.Pointer) C.int) {
	d.t.Helper()
	if code := f(d.sim.symbol(d.t, function)); code != 0 {
		require.Failf(d.t, "a call failed", "%s on device %d: %d, %s", function, d.index, code, d.sim.message(d.t))
	}
}

// CurrentDevice returns the device that is set on the calling OS thread, if there is one.
func CurrentDevice(t testing.TB) (index int, set bool) {
	t.Helper()
	s := current(t)
	return s.api.current(t, s)
}

// Alloc returns n bytes of device memory.
func (d *Device) Alloc(n int) (addr uintptr) {
	d.t.Helper()
	d.Do(func() {
		addr = d.sim.api.alloc(d, n)
		d.live[addr] = func() { d.sim.api.free(d, addr) }
	})
	return addr
}

// Free gives memory back.
func (d *Device) Free(addr uintptr) {
	d.t.Helper()
	d.Do(func() {
		free := d.live[addr]
		require.NotNil(d.t, free, "%#x was not allocated", addr)
		delete(d.live, addr)
		free()
	})
}

// Write copies bytes into device memory.
func (d *Device) Write(addr uintptr, b []byte) {
	d.t.Helper()
	d.Do(func() { d.sim.api.write(d, addr, b) })
}

// Read returns n bytes of device memory.
func (d *Device) Read(addr uintptr, n int) []byte {
	d.t.Helper()
	b := make([]byte, n)
	d.Do(func() { d.sim.api.read(d, addr, b) })
	return b
}
