package simtest

// #include <stddef.h>
// #include <stdint.h>
//
// static int call_init(void *function) { return ((int (*)(const char *))function)(NULL); }
// static int call_device(void *function, int32_t device) { return ((int (*)(int32_t))function)(device); }
// static int call_current(void *function, int32_t *out) { return ((int (*)(int32_t *))function)(out); }
// static int call_malloc(void *function, uintptr_t *out, size_t size)
// {
//     void *memory = NULL;
//     int code = ((int (*)(void **, size_t, int))function)(&memory, size, 0);
//
//     *out = (uintptr_t)memory;
//     return code;
// }
// static int call_free(void *function, uintptr_t memory) { return ((int (*)(void *))function)((void *)memory); }
// static int call_copy(void *function, uintptr_t to, uintptr_t from, size_t size, int kind)
// {
//     return ((int (*)(void *, size_t, const void *, size_t, int))function)((void *)to, size, (void *)from, size, kind);
// }
// static int write_to(void *function, uintptr_t to, const void *from, size_t size)
// {
//     return call_copy(function, to, (uintptr_t)from, size, 1);
// }
// static int read_from(void *function, uintptr_t from, void *to, size_t size)
// {
//     return call_copy(function, (uintptr_t)to, from, size, 2);
// }
import "C"

import (
	"runtime"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// Device is a device as an application uses it: on one OS thread of its own, on which it has set the device, by calls of
// AscendCL that have nothing to do with those of package ascend. What it allocated is freed at the end of the test. Its
// methods may be called from any goroutine that may end the test.
type Device struct {
	t     testing.TB
	sim   *simulator
	index int
	tasks chan func()
	ended chan struct{}        // closed when the thread ends
	live  map[uintptr]struct{} // touched on the thread only
}

// NewDevice returns a device by its number, set on a new thread.
func NewDevice(t testing.TB, index int) *Device {
	t.Helper()
	d := &Device{t: t, sim: current(t), index: index, live: map[uintptr]struct{}{}}
	d.tasks, d.ended = make(chan func()), make(chan struct{})
	go d.run()
	t.Cleanup(func() {
		defer func() {
			close(d.tasks)
			<-d.ended
		}()
		d.close()
	})
	d.call("aclInit", func(f unsafe.Pointer) C.int { return initialised(C.call_init(f)) })
	d.call("aclrtSetDevice", func(f unsafe.Pointer) C.int { return C.call_device(f, C.int32_t(index)) })
	return d
}

// initialised is success for a library that was initialised before, too.
func initialised(code C.int) C.int {
	const repeated = 100002
	if code == repeated {
		return 0
	}
	return code
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
	for addr := range d.live {
		d.Free(addr)
	}
	d.call("aclrtResetDevice", func(f unsafe.Pointer) C.int { return C.call_device(f, C.int32_t(d.index)) })
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

// call has f call a function on the thread of the device. It must not fail.
func (d *Device) call(function string, f func(address unsafe.Pointer) C.int) {
	d.t.Helper()
	address := d.sim.symbol(d.t, function)
	var code C.int
	d.Do(func() { code = f(address) })
	require.Zero(d.t, code, "%s on device %d", function, d.index)
}

// CurrentDevice returns the device that is set on the calling OS thread, if there is one.
func CurrentDevice(t testing.TB) (index int, set bool) {
	t.Helper()
	var number C.int32_t
	code := C.call_current(current(t).symbol(t, "aclrtGetDevice"), &number)
	return int(number), code == 0
}

// Alloc returns n bytes of device memory.
func (d *Device) Alloc(n int) uintptr {
	d.t.Helper()
	var memory C.uintptr_t
	d.call("aclrtMalloc", func(f unsafe.Pointer) C.int {
		code := C.call_malloc(f, &memory, C.size_t(n))
		d.live[uintptr(memory)] = struct{}{}
		return code
	})
	return uintptr(memory)
}

// Free gives memory of Alloc back.
func (d *Device) Free(addr uintptr) {
	d.t.Helper()
	d.call("aclrtFree", func(f unsafe.Pointer) C.int {
		delete(d.live, addr)
		return C.call_free(f, C.uintptr_t(addr))
	})
}

// Write copies bytes into device memory.
func (d *Device) Write(addr uintptr, b []byte) {
	d.t.Helper()
	d.call("aclrtMemcpy", func(f unsafe.Pointer) C.int {
		return C.write_to(f, C.uintptr_t(addr), unsafe.Pointer(unsafe.SliceData(b)), C.size_t(len(b)))
	})
}

// Read returns n bytes of device memory.
func (d *Device) Read(addr uintptr, n int) []byte {
	d.t.Helper()
	b := make([]byte, n)
	d.call("aclrtMemcpy", func(f unsafe.Pointer) C.int {
		return C.read_from(f, C.uintptr_t(addr), unsafe.Pointer(unsafe.SliceData(b)), C.size_t(n))
	})
	return b
}
