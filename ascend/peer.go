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
//  2. CopyFrom queues the copies one by one, as those within the NPU, in the stream, which is of the NPU that the bytes go to;
//  3. where a copy is refused, it opens the memory again: the application may have reset the peer, and set it again.

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
	peer := other.(*npu)
	opened := slices.Contains(s.peers, peer.index)
	issued, err = s.copyFrom(peer, copies)
	if err != nil && opened {
		s.peers = slices.DeleteFunc(s.peers, func(index int) bool { return index == peer.index })
		var more int
		more, err = s.copyFrom(peer, copies[issued:])
		issued += more
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", device.ErrNoPeer, err)
	}
	return issued, err
}

func (s *stream) copyFrom(peer *npu, copies []device.Copy) (issued int, err error) {
	if err := s.access(peer); err != nil {
		return 0, err
	}
	return s.Copy(device.WithinDevice, copies)
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
