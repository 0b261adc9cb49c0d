package simtest

// #include <stddef.h>
// #include <stdint.h>
//
// /* CUmemAllocationProp and CUmemAccessDesc */
// struct properties {
//     int type, handle_types, location_type, location_id;
//     void *windows;
//     unsigned char flags[8];
// };
// struct access { int location_type, location_id, flags; };
//
// static int cuda_number(void *function, int number) { return ((int (*)(int))function)(number); }
// static int cuda_retain(void *function, void **context, int device)
// {
//     return ((int (*)(void **, int))function)(context, device);
// }
// static int cuda_pointer(void *function, void *pointer) { return ((int (*)(void *))function)(pointer); }
// static int cuda_get_current(void *function, void **context) { return ((int (*)(void **))function)(context); }
// static int cuda_exchange_mode(void *function, int *mode) { return ((int (*)(int *))function)(mode); }
// static int cuda_get_device(void *function, int *device) { return ((int (*)(int *))function)(device); }
// static int cuda_alloc(void *function, uintptr_t *out, size_t size)
// {
//     return ((int (*)(uintptr_t *, size_t))function)(out, size);
// }
// static int cuda_alloc_flags(void *function, uintptr_t *out, size_t size, unsigned flags)
// {
//     return ((int (*)(uintptr_t *, size_t, unsigned))function)(out, size, flags);
// }
// static int cuda_address(void *function, uintptr_t address) { return ((int (*)(uintptr_t))function)(address); }
// static int cuda_part(void *function, uintptr_t address, size_t size)
// {
//     return ((int (*)(uintptr_t, size_t))function)(address, size);
// }
// static int cuda_write(void *function, uintptr_t to, const void *from, size_t size)
// {
//     return ((int (*)(uintptr_t, const void *, size_t))function)(to, from, size);
// }
// static int cuda_read(void *function, void *to, uintptr_t from, size_t size)
// {
//     return ((int (*)(void *, uintptr_t, size_t))function)(to, from, size);
// }
// static int cuda_reserve(void *function, uintptr_t *out, size_t size)
// {
//     return ((int (*)(uintptr_t *, size_t, size_t, uintptr_t, unsigned long long))function)(out, size, 0, 0, 0);
// }
// static int cuda_create(void *function, unsigned long long *out, size_t size, int device)
// {
//     struct properties properties = {1, 0, 1, device, NULL, {0}};
//
//     return ((int (*)(unsigned long long *, size_t, const struct properties *, unsigned long long))function)(
//         out, size, &properties, 0);
// }
// static int cuda_map(void *function, uintptr_t address, size_t size, unsigned long long handle)
// {
//     return ((int (*)(uintptr_t, size_t, size_t, unsigned long long, unsigned long long))function)(address, size, 0,
//                                                                                                   handle, 0);
// }
// static int cuda_allow(void *function, uintptr_t address, size_t size, int device)
// {
//     struct access access = {1, device, 3};
//
//     return ((int (*)(uintptr_t, size_t, const struct access *, size_t))function)(address, size, &access, 1);
// }
// static int cuda_release(void *function, unsigned long long handle)
// {
//     return ((int (*)(unsigned long long))function)(handle);
// }
import "C"

import (
	"testing"
	"unsafe"

	"kvferry/cuda"

	"github.com/stretchr/testify/require"
)

// VirtualPiece is what the sizes of AllocVirtual are multiples of.
const VirtualPiece = 2 << 20

var cudaAPI = api{
	kind:    "cuda",
	file:    "libcuda.so.1",
	runtime: cuda.New,
	enter:   cudaEnter,
	leave:   func(d *Device) { cudaNumber(d, "cuDevicePrimaryCtxRelease_v2", d.index) },
	alloc: func(d *Device, n int) uintptr {
		var memory C.uintptr_t
		d.call("cuMemAlloc_v2", func(f unsafe.Pointer) C.int { return C.cuda_alloc(f, &memory, C.size_t(n)) })
		return uintptr(memory)
	},
	free: func(d *Device, addr uintptr) { cudaFree(d, "cuMemFree_v2", addr) },
	write: func(d *Device, addr uintptr, b []byte) {
		d.call("cuMemcpyHtoD_v2", func(f unsafe.Pointer) C.int {
			return C.cuda_write(f, C.uintptr_t(addr), unsafe.Pointer(unsafe.SliceData(b)), C.size_t(len(b)))
		})
	},
	read: func(d *Device, addr uintptr, b []byte) {
		d.call("cuMemcpyDtoH_v2", func(f unsafe.Pointer) C.int {
			return C.cuda_read(f, unsafe.Pointer(unsafe.SliceData(b)), C.uintptr_t(addr), C.size_t(len(b)))
		})
	},
	current: func(t testing.TB, s *simulator) (index int, set bool) {
		var context unsafe.Pointer
		code := C.cuda_get_current(s.symbol(t, "cuCtxGetCurrent"), &context)
		if code != 0 || context == nil {
			return 0, false
		}
		var number C.int
		code = C.cuda_get_device(s.symbol(t, "cuCtxGetDevice"), &number)
		return int(number), code == 0
	},
}

func cudaEnter(d *Device) {
	cudaNumber(d, "cuInit", 0)
	var context unsafe.Pointer
	d.call("cuDevicePrimaryCtxRetain", func(f unsafe.Pointer) C.int { return C.cuda_retain(f, &context, C.int(d.index)) })
	d.call("cuCtxSetCurrent", func(f unsafe.Pointer) C.int { return C.cuda_pointer(f, context) })
}

// cudaNumber calls a function that takes a number.
func cudaNumber(d *Device, function string, number int) {
	d.call(function, func(f unsafe.Pointer) C.int { return C.cuda_number(f, C.int(number)) })
}

func cudaFree(d *Device, function string, addr uintptr) {
	d.call(function, func(f unsafe.Pointer) C.int { return C.cuda_address(f, C.uintptr_t(addr)) })
}

// CaptureMode returns what the calling OS thread may disturb while CUDA captures: 0 all, 1 what is its own, 2 nothing.
func CaptureMode(t testing.TB) int {
	t.Helper()
	exchange, mode := current(t).symbol(t, "cuThreadExchangeStreamCaptureMode"), C.int(0)
	require.Zero(t, C.cuda_exchange_mode(exchange, &mode))
	found := mode
	require.Zero(t, C.cuda_exchange_mode(exchange, &mode)) // back again
	return int(found)
}

// AllocManaged returns n bytes of CUDA's managed memory, which belong to the device and which the host can access.
func (d *Device) AllocManaged(n int) uintptr {
	d.t.Helper()
	return d.allocWithFlags("cuMemAllocManaged", n, 1, "cuMemFree_v2")
}

// AllocPinned returns n bytes of page-locked host memory, by CUDA.
func (d *Device) AllocPinned(n int) uintptr {
	d.t.Helper()
	return d.allocWithFlags("cuMemHostAlloc", n, 0, "cuMemFreeHost")
}

func (d *Device) allocWithFlags(function string, n int, flags uint32, free string) uintptr {
	d.t.Helper()
	var memory C.uintptr_t
	d.Do(func() {
		d.call(function, func(f unsafe.Pointer) C.int {
			return C.cuda_alloc_flags(f, &memory, C.size_t(n), C.uint(flags))
		})
		d.live[uintptr(memory)] = func() { cudaFree(d, free, uintptr(memory)) }
	})
	return uintptr(memory)
}

// AllocVirtual returns a range of CUDA's virtual memory into which pieces of device memory of those sizes are mapped, one
// behind the other, as PyTorch's expandable segments are. Sizes are multiples of VirtualPiece; a negative one leaves a hole
// of as many bytes.
func (d *Device) AllocVirtual(sizes ...int) uintptr {
	d.t.Helper()
	total := 0
	for _, n := range sizes {
		total += max(n, -n)
	}
	var base C.uintptr_t
	d.Do(func() {
		d.call("cuMemAddressReserve", func(f unsafe.Pointer) C.int { return C.cuda_reserve(f, &base, C.size_t(total)) })
		at := uintptr(base)
		for _, n := range sizes {
			if n > 0 {
				d.mapPiece(at, n)
			}
			at += uintptr(max(n, -n))
		}
		d.live[uintptr(base)] = func() { d.freeVirtual(uintptr(base), sizes, total) }
	})
	return uintptr(base)
}

func (d *Device) mapPiece(addr uintptr, n int) {
	var handle C.ulonglong
	address, size := C.uintptr_t(addr), C.size_t(n)
	d.call("cuMemCreate", func(f unsafe.Pointer) C.int { return C.cuda_create(f, &handle, size, C.int(d.index)) })
	d.call("cuMemMap", func(f unsafe.Pointer) C.int { return C.cuda_map(f, address, size, handle) })
	d.call("cuMemSetAccess", func(f unsafe.Pointer) C.int { return C.cuda_allow(f, address, size, C.int(d.index)) })
	d.call("cuMemRelease", func(f unsafe.Pointer) C.int { return C.cuda_release(f, handle) })
}

func (d *Device) freeVirtual(base uintptr, sizes []int, total int) {
	at := base
	for _, n := range sizes {
		if n > 0 {
			d.call("cuMemUnmap", func(f unsafe.Pointer) C.int { return C.cuda_part(f, C.uintptr_t(at), C.size_t(n)) })
		}
		at += uintptr(max(n, -n))
	}
	d.call("cuMemAddressFree", func(f unsafe.Pointer) C.int { return C.cuda_part(f, C.uintptr_t(base), C.size_t(total)) })
}
