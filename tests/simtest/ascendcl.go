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
	"testing"
	"unsafe"

	"kvferry/ascend"
)

var ascendCL = api{
	kind:    "npu",
	file:    "libascendcl.so",
	runtime: ascend.New,
	enter:   aclEnter,
	leave:   func(d *Device) { aclDevice(d, "aclrtResetDevice") },
	alloc:   aclAlloc,
	free: func(d *Device, addr uintptr) {
		d.call("aclrtFree", func(f unsafe.Pointer) C.int { return C.call_free(f, C.uintptr_t(addr)) })
	},
	write: func(d *Device, addr uintptr, b []byte) {
		d.call("aclrtMemcpy", func(f unsafe.Pointer) C.int {
			return C.write_to(f, C.uintptr_t(addr), unsafe.Pointer(unsafe.SliceData(b)), C.size_t(len(b)))
		})
	},
	read: func(d *Device, addr uintptr, b []byte) {
		d.call("aclrtMemcpy", func(f unsafe.Pointer) C.int {
			return C.read_from(f, C.uintptr_t(addr), unsafe.Pointer(unsafe.SliceData(b)), C.size_t(len(b)))
		})
	},
	current: aclCurrent,
}

func aclEnter(d *Device) {
	const repeated = 100002 // it was initialised before
	d.call("aclInit", func(f unsafe.Pointer) C.int {
		code := C.call_init(f)
		if code == repeated {
			return 0
		}
		return code
	})
	aclDevice(d, "aclrtSetDevice")
}

// aclDevice calls a function with the number of the device.
func aclDevice(d *Device, function string) {
	d.call(function, func(f unsafe.Pointer) C.int { return C.call_device(f, C.int32_t(d.index)) })
}

func aclAlloc(d *Device, n int) uintptr {
	var memory C.uintptr_t
	d.call("aclrtMalloc", func(f unsafe.Pointer) C.int { return C.call_malloc(f, &memory, C.size_t(n)) })
	return uintptr(memory)
}

func aclCurrent(t testing.TB, s *simulator) (index int, set bool) {
	var number C.int32_t
	code := C.call_current(s.symbol(t, "aclrtGetDevice"), &number)
	return int(number), code == 0
}
