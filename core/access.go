package core

import (
	"errors"

	"kvferry/core/metadata"
	"kvferry/core/status"
)

// Access is a set of what peers may do with a region. The zero value is nothing: only transfers that this engine starts use the
// region then, as their local memory. The values are those of the C interface.
type Access uint32

const (
	RemoteRead  Access = 1 << Read
	RemoteWrite Access = 1 << Write

	NoAccess   Access = 0
	FullAccess        = RemoteRead | RemoteWrite
)

// ErrForbidden is in the error of a transfer of registered memory whose owner has not opened it for transfers in that direction.
var ErrForbidden = errors.New("its owner does not let peers")

// Allows reports whether a READ or a WRITE of a peer is allowed.
func (a Access) Allows(op Opcode) bool { return a>>op&1 != 0 }

func (a Access) check() error {
	if a&^FullAccess != 0 {
		return status.Errorf(status.InvalidArgument, "access %#x has flags that do not exist: remote read is %#x, remote write %#x",
			uint32(a), uint32(RemoteRead), uint32(RemoteWrite))
	}
	return nil
}

// accessOf is what remote access means that is not described further.
func accessOf(remote bool) Access {
	if remote {
		return FullAccess
	}
	return NoAccess
}

// published is how a descriptor says it of a region that it lists.
func (a Access) published() metadata.Access {
	switch a {
	case RemoteRead:
		return metadata.ReadOnly
	case RemoteWrite:
		return metadata.WriteOnly
	}
	return metadata.ReadWrite
}

// Verb is what a peer does to the memory of the segment.
func (o Opcode) Verb() string {
	if o == Read {
		return "read"
	}
	return "write"
}
