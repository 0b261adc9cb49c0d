package cuda

// #include "cuda.h"
import "C"

import (
	"errors"
	"fmt"
	"unsafe"

	"kvferry/core/device"
	"kvferry/core/status"
)

// The steps of copies from the memory of another GPU:
//
//  1. access, once for each peer of a stream, retains the peer's primary context, asks the driver whether the GPU can access its
//     memory, and opens that to the GPU's own context. It stays open: the application may use it, too, and does not know who
//     has opened it. Without it the driver would copy by way of the host;
//  2. CopyFrom checks that all memory is of these two contexts: access to what cuMemMap has mapped is a matter of its own;
//  3. it queues the copies one by one in the stream, which is of the GPU that the bytes go to;
//  4. leavePeers releases the contexts with the stream.

var (
	_ device.Peered     = (*gpu)(nil)
	_ device.PeerStream = (*stream)(nil)
)

// peer is another GPU whose memory a stream can access.
type peer struct {
	gpu     *gpu
	context C.uintptr_t
}

// MayAccess reports whether the other device is a GPU of the same driver, which has the functions for peers.
func (d *gpu) MayAccess(other device.Device) bool {
	o, same := other.(*gpu)
	return same && o.library == d.library && o.index != d.index && C.kvferry_cuda_has_peers(d.library.cuda) != 0
}

// CopyFrom queues the copies up to the first that is refused.
func (s *stream) CopyFrom(other device.Device, copies []device.Copy) (issued int, err error) {
	if !s.gpu.MayAccess(other) {
		return 0, device.ErrNoPeer
	}
	p, err := s.access(other.(*gpu))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", device.ErrNoPeer, err)
	}
	if len(copies) == 0 {
		return 0, nil
	}
	list := (*C.struct_cuda_copy)(unsafe.Pointer(unsafe.SliceData(copies)))
	if err := s.checkPeers(p, copies); err != nil {
		return 0, err
	}
	progress := C.kvferry_cuda_copy_peer(s.gpu.library.cuda, s.context, p.context, list, C.size_t(len(copies)), s.handle)
	issued = int(progress.index)
	if issued == len(copies) {
		return issued, nil
	}
	refused := copies[issued]
	err = s.gpu.failed(progress.code, status.Context, "cuMemcpyPeerAsync(%d bytes from %#x of %s to %#x)",
		refused.Length, refused.Src, gpus.NameOf(p.gpu.index), refused.Dst)
	return issued, fmt.Errorf("%w: %w", device.ErrNoPeer, err)
}

// checkPeers fails with device.ErrOutOfReach unless all memory of the copies is of the two contexts.
func (s *stream) checkPeers(p *peer, copies []device.Copy) error {
	list := (*C.struct_cuda_copy)(unsafe.Pointer(unsafe.SliceData(copies)))
	reach := C.kvferry_cuda_check_peers(s.gpu.library.cuda, s.context, p.context, list, C.size_t(len(copies)))
	if reach.code == C.CUDA_SUCCESS {
		return nil
	}
	refused := copies[reach.index]
	return fmt.Errorf("a copy from %#x to %#x: %w: %w", refused.Src, refused.Dst, device.ErrOutOfReach,
		s.gpu.failed(reach.code, status.Memory, "cuPointerGetAttributes()"))
}

// access finds the peer of a GPU, or makes it.
func (s *stream) access(other *gpu) (*peer, error) {
	for i := range s.peers {
		if s.peers[i].gpu == other {
			return &s.peers[i], nil
		}
	}
	if err := other.find(); err != nil {
		return nil, err
	}
	cuda, own, theirs := s.gpu.library.cuda, C.int(s.gpu.handle.Load()), C.int(other.handle.Load())
	can := C.kvferry_cuda_can_access(cuda, own, theirs)
	if err := s.gpu.failed(can.code, status.Context, "cuDeviceCanAccessPeer(%d, %d)", own, theirs); err != nil {
		return nil, err
	}
	if can.value == 0 {
		return nil, fmt.Errorf("%s: cuDeviceCanAccessPeer(%d, %d) says so", gpus.NameOf(s.gpu.index), own, theirs)
	}
	context, err := other.retain()
	if err != nil {
		return nil, err
	}
	enabled := C.kvferry_cuda_enable_peer(cuda, context)
	if err := s.gpu.failed(enabled, status.Context, "cuCtxEnablePeerAccess(that of %s)", gpus.NameOf(other.index)); err != nil {
		return nil, errors.Join(err, other.release())
	}
	s.peers = append(s.peers, peer{other, context})
	return &s.peers[len(s.peers)-1], nil
}

// leavePeers releases the contexts of the peers. The stream is destroyed.
func (s *stream) leavePeers() error {
	var errs []error
	for _, p := range s.peers {
		errs = append(errs, p.gpu.release())
	}
	s.peers = nil
	return errors.Join(errs...)
}
