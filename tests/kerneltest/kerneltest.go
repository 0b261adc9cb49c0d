// Package kerneltest runs the kernels of the package cuda on the processor, by way of the launches that a GPU would get. It
// checks each access of a kernel: it is aligned, of a byte of a copy, and each byte of a destination is written once.
package kerneltest

// #cgo CFLAGS: -std=c99
// #include "host.h"
import "C"

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"kvferry/core/device"
)

// Side is memory as a kernel sees it, from an address on that the test chooses.
type Side struct {
	Start uintptr
	Bytes []byte
}

// CopyList has the kernel make copies from one side to the other, with at most so many blocks.
func CopyList(to, from Side, copies []device.Copy, blocks int) error {
	r := newRun(to, from)
	for _, c := range copies {
		r.expect(c)
	}
	return r.end(func(run *C.struct_kerneltest_run) *C.char {
		list := (*C.struct_cuda_copy)(unsafe.Pointer(unsafe.SliceData(copies)))
		return C.kerneltest_list(run, list, C.size_t(len(copies)))
	}, blocks)
}

// CopyStrided is CopyList for the groups of a Strided, whose runs are the copies.
func CopyStrided(to, from Side, s *device.Strided, at []device.Base, copies []device.Copy, blocks int) error {
	r := newRun(to, from)
	for _, c := range copies {
		r.expect(c)
	}
	return r.end(func(run *C.struct_kerneltest_run) *C.char {
		runs, bases := stridedOf(s, at)
		return C.kerneltest_strided(run, runs, bases, C.size_t(len(at)))
	}, blocks)
}

// Launches is how many launches there are for a CopyStrided, and how many groups and slots they have together.
type Launches struct{ Launches, Groups, Slots uint64 }

// CountStrided counts the launches, and copies nothing.
func CountStrided(s *device.Strided, at []device.Base) (Launches, error) {
	runs, bases := stridedOf(s, at)
	counted := C.kerneltest_count_strided(runs, bases, C.size_t(len(at)))
	if counted.code != 0 {
		return Launches{}, fmt.Errorf("the launch failed with %d", counted.code)
	}
	return Launches{uint64(counted.launches), uint64(counted.groups), uint64(counted.slots)}, nil
}

func stridedOf(s *device.Strided, at []device.Base) (*C.struct_cuda_strided, *C.struct_cuda_base) {
	return (*C.struct_cuda_strided)(unsafe.Pointer(s)), (*C.struct_cuda_base)(unsafe.Pointer(unsafe.SliceData(at)))
}

// run has a byte for each byte of a side: whether it is to be read, and how often it is to be written, and was.
type run struct {
	to, from                Side
	used, expected, touched []byte
}

func newRun(to, from Side) *run {
	return &run{to, from, make([]byte, len(from.Bytes)), make([]byte, len(to.Bytes)), make([]byte, len(to.Bytes))}
}

func (r *run) expect(c device.Copy) {
	for i := range uintptr(c.Length) {
		r.used[c.Src-r.from.Start+i] = 1
		r.expected[c.Dst-r.to.Start+i]++
	}
}

func (r *run) end(kernel func(*C.struct_kerneltest_run) *C.char, blocks int) error {
	var pinned runtime.Pinner
	defer pinned.Unpin()
	pointer := func(b []byte) *C.uchar {
		pinned.Pin(unsafe.SliceData(b))
		return (*C.uchar)(unsafe.SliceData(b))
	}
	side := func(s Side) C.struct_kerneltest_side {
		return C.struct_kerneltest_side{start: C.uint64_t(s.Start), size: C.uint64_t(len(s.Bytes)), bytes: pointer(s.Bytes)}
	}
	c := &C.struct_kerneltest_run{to: side(r.to), from: side(r.from), touched: pointer(r.touched), blocks: C.uint32_t(blocks)}
	c.from.used = pointer(r.used)
	if fault := kernel(c); fault != nil {
		return errors.New(C.GoString(fault))
	}
	for i := range r.touched {
		if r.touched[i] != r.expected[i] {
			return fmt.Errorf("byte %d of the destination was written %d times, not %d", i, r.touched[i], r.expected[i])
		}
	}
	return nil
}
