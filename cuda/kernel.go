package cuda

// #include "cuda.h"
// #include <stdlib.h>
import "C"

import (
	_ "embed"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"kvferry/core/device"
	"kvferry/core/status"
)

// The steps of copies that a kernel makes:
//
//  1. CopyKernel loads the kernels into the GPU's context, if this is the first stream that uses them. The driver compiles
//     them for the GPU then, and keeps the result in its cache on the disk;
//  2. it checks that the kernel can access the memory of the GPU that the copies name. The other side is page-locked memory
//     that AllocatePinned has returned, which kernels access at the address that the host uses;
//  3. it launches the kernel in the stream, with the list as its parameters: for a long list several times.
//
// The stream does not wait for other streams and none waits for it. It is never captured, and its kernels get a place on
// the GPU after those of the application.

// Blocks of 512 threads. Few are enough for the bus, and more take the GPU from the application: on an H200, beside a
// product of bf16 matrices of 8192, 4 blocks carry 38 GB/s out of the GPU for blocks of 4 KiB and 51 for blocks of 64 KiB,
// and the product keeps 0.99 of its rate or more, where 16 leave it 0.75 to 0.87. Into the GPU, 8 carry 21 and 42 GB/s and
// 16 carry 40 and 51, and the product keeps 0.98 or more.
var blocks = [...]uint{device.DeviceToHost: 4, device.HostToDevice: 16, device.WithinDevice: 16}

//go:embed kernels.ptx
var ptx string

// kernels are those of a gpu's context, loaded while a stream uses them.
type kernels struct {
	mu            sync.Mutex
	users         int
	module        C.uintptr_t
	list, strided C.uintptr_t
	failed        error // why they cannot be loaded: this is tried once
}

var (
	_ device.KernelStream  = (*stream)(nil)
	_ device.StridedStream = (*stream)(nil)
)

// C takes a device.Strided and a device.Base as they are.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(device.Strided{})-C.sizeof_struct_cuda_strided]
	_ = [1]struct{}{}[unsafe.Sizeof(device.Base{})-C.sizeof_struct_cuda_base]
)

// CopyKernel queues the copies in one or more kernels. Any failure is a device.ErrNoKernel or device.ErrOutOfReach: copies can
// take the place of the kernel. A part of the kernels may have been queued.
func (s *stream) CopyKernel(kind device.Kind, copies []device.Copy) error {
	if err := s.useKernels(); err != nil {
		return err
	}
	if err := s.checkReach(kind, copies); err != nil {
		return err
	}
	list := (*C.struct_cuda_copy)(unsafe.Pointer(unsafe.SliceData(copies)))
	code := C.kvferry_cuda_launch_list(s.gpu.library.cuda, s.gpu.kernels.list, list, C.size_t(len(copies)), C.uint(blocks[kind]), s.handle)
	if err := s.gpu.failed(code, status.Context, "cuLaunchKernel(%d copies, %v)", len(copies), kind); err != nil {
		return fmt.Errorf("%w: %w", device.ErrNoKernel, err)
	}
	return nil
}

// CopyStrided is CopyKernel for groups of copies of one shape.
func (s *stream) CopyStrided(kind device.Kind, strided *device.Strided, at []device.Base) error {
	if err := s.useKernels(); err != nil {
		return err
	}
	if err := s.checkExtents(kind, strided, at); err != nil {
		return err
	}
	runs := (*C.struct_cuda_strided)(unsafe.Pointer(strided))
	bases := (*C.struct_cuda_base)(unsafe.Pointer(unsafe.SliceData(at)))
	code := C.kvferry_cuda_launch_strided(s.gpu.library.cuda, s.gpu.kernels.strided, runs, bases, C.size_t(len(at)),
		C.uint(blocks[kind]), s.handle)
	if err := s.gpu.failed(code, status.Context, "cuLaunchKernel(%d strided groups, %v)", len(at), kind); err != nil {
		return fmt.Errorf("%w: %w", device.ErrNoKernel, err)
	}
	return nil
}

// checkExtents is checkReach for all that lies between the first byte and the last one of each group.
func (s *stream) checkExtents(kind device.Kind, strided *device.Strided, at []device.Base) error {
	to, from := strided.Extents(device.Base{}) // of a group at 0: its addresses can be below that, and wrap around
	if kind != device.DeviceToHost {
		if err := s.checkReach(device.HostToDevice, s.placed(to, at)); err != nil {
			return err
		}
	}
	if kind != device.HostToDevice {
		return s.checkReach(device.DeviceToHost, s.placed(from, at))
	}
	return nil
}

// placed are the extents of groups: those of the group at 0, moved to each base. They are valid until the next call.
func (s *stream) placed(extent device.Copy, at []device.Base) []device.Copy {
	s.extents = s.extents[:0]
	for _, base := range at {
		s.extents = append(s.extents, device.Copy{Dst: extent.Dst + base.Dst, Src: extent.Src + base.Src, Length: extent.Length})
	}
	return s.extents
}

// checkReach fails with device.ErrOutOfReach if a kernel cannot access the GPU's side of the copies.
func (s *stream) checkReach(kind device.Kind, copies []device.Copy) error {
	list := (*C.struct_cuda_copy)(unsafe.Pointer(unsafe.SliceData(copies)))
	reach := C.kvferry_cuda_check_reach(s.gpu.library.cuda, s.context, kinds[kind].kind, list, C.size_t(len(copies)))
	if reach.code == C.CUDA_SUCCESS {
		return nil
	}
	if reach.code == C.CUDA_NOT_SUPPORTED || reach.code == C.CUDA_INVALID_VALUE { // the latter for an address of nobody
		refused := copies[reach.index]
		return status.Errorf(status.Memory, "%s: a copy from %#x to %#x is of memory of another context, or that was freed: %w",
			gpus.NameOf(s.gpu.index), refused.Src, refused.Dst, device.ErrOutOfReach)
	}
	return fmt.Errorf("%w: %w", device.ErrNoKernel, s.gpu.failed(reach.code, status.Context, "cuPointerGetAttributes()"))
}

// useKernels loads the kernels if no other stream has them loaded. It fails with device.ErrNoKernel.
func (s *stream) useKernels() error {
	if s.kernels {
		return nil
	}
	k := &s.gpu.kernels
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.users == 0 && k.failed == nil {
		k.failed = s.gpu.loadKernels()
	}
	if k.failed != nil {
		return fmt.Errorf("%w: %w", device.ErrNoKernel, k.failed)
	}
	k.users++
	s.kernels = true
	return nil
}

// loadKernels is called with the lock of the kernels held.
func (d *gpu) loadKernels() error {
	text := C.CString(ptx)
	defer C.free(unsafe.Pointer(text))
	loaded := C.kvferry_cuda_load_module(d.library.cuda, text)
	if err := d.failed(loaded.code, status.Context, "cuModuleLoadData()"); err != nil {
		return err
	}
	d.kernels.module = loaded.value
	list, listErr := d.findKernel(C.CUDA_KERNEL_LIST)
	strided, stridedErr := d.findKernel(C.CUDA_KERNEL_STRIDED)
	if err := errors.Join(listErr, stridedErr); err != nil {
		return errors.Join(err, d.unloadKernels())
	}
	d.kernels.list, d.kernels.strided = list, strided
	return nil
}

func (d *gpu) findKernel(kernel C.enum_cuda_kernel) (C.uintptr_t, error) {
	found := C.kvferry_cuda_find_kernel(d.library.cuda, d.kernels.module, kernel)
	return found.value, d.failed(found.code, status.Context, "cuModuleGetFunction()")
}

func (d *gpu) unloadKernels() error {
	return d.failed(C.kvferry_cuda_unload_module(d.library.cuda, d.kernels.module), status.Context, "cuModuleUnload()")
}

// releaseKernels unloads the kernels with the last stream that uses them, which has come to rest.
func (s *stream) releaseKernels() error {
	if !s.kernels {
		return nil
	}
	s.kernels = false
	k := &s.gpu.kernels
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.users--; k.users > 0 {
		return nil
	}
	return s.gpu.unloadKernels()
}
