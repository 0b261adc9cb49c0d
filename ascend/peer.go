package ascend

// #include "acl.h"
import "C"

import (
	"fmt"
	"slices"

	"kvferry/core/device"
	"kvferry/core/status"
)

// The steps of copies from the memory of another NPU:
//
//  1. access, once for each peer of a stream, asks AscendCL whether the NPU can access its memory, and opens that to it. It stays
//     open: the application may use it, too;
//  2. CopyFrom queues the copies one by one, as those within the NPU, in the stream, which is of the NPU that the bytes go to.

var (
	_ device.Peered     = (*npu)(nil)
	_ device.PeerStream = (*stream)(nil)
)

// MayAccess reports whether the other device is an NPU of the same library, which has the functions for peers.
func (d *npu) MayAccess(other device.Device) bool {
	o, same := other.(*npu)
	return same && o.library == d.library && o.index != d.index && C.kvferry_acl_has_peers(d.library.acl) != 0
}

// CopyFrom queues the copies up to the first that is refused.
func (s *stream) CopyFrom(other device.Device, copies []device.Copy) (issued int, err error) {
	if !s.npu.MayAccess(other) {
		return 0, device.ErrNoPeer
	}
	if err := s.access(other.(*npu)); err != nil {
		return 0, fmt.Errorf("%w: %w", device.ErrNoPeer, err)
	}
	issued, err = s.Copy(device.WithinDevice, copies)
	if err != nil {
		err = fmt.Errorf("%w: %w", device.ErrNoPeer, err)
	}
	return issued, err
}

// access opens the memory of a peer.
func (s *stream) access(other *npu) error {
	if slices.Contains(s.peers, other.index) {
		return nil
	}
	own, theirs := C.int32_t(s.npu.index), C.int32_t(other.index)
	can := C.kvferry_acl_can_access(s.npu.library.acl, own, theirs)
	if err := s.npu.failed(can.code, status.Context, "aclrtDeviceCanAccessPeer(%d, %d)", own, theirs); err != nil {
		return err
	}
	if can.value == 0 {
		return fmt.Errorf("%s: aclrtDeviceCanAccessPeer(%d, %d) says so", npus.NameOf(s.npu.index), own, theirs)
	}
	enabled := C.kvferry_acl_enable_peer(s.npu.library.acl, theirs)
	if err := s.npu.failed(enabled, status.Context, "aclrtDeviceEnablePeerAccess(%d)", theirs); err != nil {
		return err
	}
	s.peers = append(s.peers, other.index)
	return nil
}
