package simtest

// #include <stddef.h>
// #include <stdint.h>
//
// static int stream_create(void *function, void **out, unsigned flags)
// {
//     return ((int (*)(void **, unsigned))function)(out, flags);
// }
// static int stream_call(void *function, uintptr_t stream) { return ((int (*)(void *))function)((void *)stream); }
// static int stream_write(void *function, uintptr_t to, uintptr_t from, size_t size, uintptr_t stream)
// {
//     return ((int (*)(uintptr_t, const void *, size_t, void *))function)(to, (const void *)from, size, (void *)stream);
// }
// static int stream_read(void *function, uintptr_t to, uintptr_t from, size_t size, uintptr_t stream)
// {
//     return ((int (*)(void *, uintptr_t, size_t, void *))function)((void *)to, from, size, (void *)stream);
// }
import "C"

import "unsafe"

// Stream is one of CUDA's as an application has it: copies are between a device's memory and page-locked memory, and are
// queued. It has no order with the default stream.
type Stream struct {
	Handle uintptr
	d      *Device
}

// NewStream returns a stream, which is destroyed at the end of the test: by then it must be complete.
func (d *Device) NewStream() Stream {
	d.t.Helper()
	var stream unsafe.Pointer
	d.Do(func() {
		d.call("cuStreamCreate", func(f unsafe.Pointer) C.int { return C.stream_create(f, &stream, 1) })
		d.live[uintptr(stream)] = func() { d.callStream("cuStreamDestroy_v2", uintptr(stream)) }
	})
	return Stream{uintptr(stream), d}
}

// DefaultStream returns the one of the device's context.
func (d *Device) DefaultStream() Stream { return Stream{0, d} }

func (d *Device) callStream(function string, stream uintptr) {
	d.t.Helper()
	d.call(function, func(f unsafe.Pointer) C.int { return C.stream_call(f, C.uintptr_t(stream)) })
}

// Write queues a copy to the device.
func (s Stream) Write(to, from uintptr, n int) {
	s.d.t.Helper()
	s.d.Do(func() {
		s.d.call("cuMemcpyHtoDAsync_v2", func(f unsafe.Pointer) C.int {
			return C.stream_write(f, C.uintptr_t(to), C.uintptr_t(from), C.size_t(n), C.uintptr_t(s.Handle))
		})
	})
}

// Read queues a copy from the device.
func (s Stream) Read(to, from uintptr, n int) {
	s.d.t.Helper()
	s.d.Do(func() {
		s.d.call("cuMemcpyDtoHAsync_v2", func(f unsafe.Pointer) C.int {
			return C.stream_read(f, C.uintptr_t(to), C.uintptr_t(from), C.size_t(n), C.uintptr_t(s.Handle))
		})
	})
}

// Wait waits until all that is queued has been done.
func (s Stream) Wait() {
	s.d.t.Helper()
	s.d.Do(func() { s.d.callStream("cuStreamSynchronize", s.Handle) })
}
