package core

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"kvferry/core/address"
	"kvferry/core/metadata"
	"kvferry/core/status"
)

// Segment is a peer's memory, opened by name. It stays valid as long as the engine, also when it was removed.
type Segment struct {
	ID   SegmentID
	Name string

	store      metadata.Store
	central    bool // descriptors are in a store that engines share, and do not come from the owner
	descriptor atomic.Pointer[metadata.Descriptor]
	proof      proof
	removed    atomic.Bool

	mu       sync.Mutex
	fetching *fetch // nil while nobody fetches
}

// Descriptor is the cached descriptor of the segment. It is shared: nobody changes it.
func (s *Segment) Descriptor() *metadata.Descriptor { return s.descriptor.Load() }

// Removed is why no transport takes work for the segment any more; nil while it is open.
func (s *Segment) Removed() error {
	if s.removed.Load() {
		return status.Errorf(status.InvalidArgument, "segment %q was removed", s.Name)
	}
	return nil
}

// DataHosts are the hosts at which the data port may be that a descriptor of the segment speaks of, without brackets, in the
// order in which to try them: the one that the descriptor names, and that of its owner's handshake port. They differ where
// the owner knows itself by another address than this engine does, behind NAT or in a container. The handshake port comes
// first where the named host is a loopback address, or none. It is left out for an owner without an identity that did not
// hand out the descriptor itself: nothing would tell whose data port is there.
func (s *Segment) DataHosts(ctx context.Context, d *metadata.Descriptor) ([]string, error) {
	if d.DataHost != "" && d.Identity == "" && s.central {
		return []string{d.DataHost}, nil
	}
	handshake, err := s.handshakeHost(ctx)
	switch {
	case d.DataHost == "" && err != nil:
		return nil, err
	case d.DataHost == "" || d.DataHost == handshake:
		return []string{handshake}, nil
	case err != nil:
		return []string{d.DataHost}, nil
	case address.IsElsewhere(d.DataHost):
		return []string{d.DataHost, handshake}, nil
	}
	return []string{handshake, d.DataHost}, nil
}

// handshakeHost is the host of the owner's handshake port.
func (s *Segment) handshakeHost(ctx context.Context) (string, error) {
	peer, err := s.store.HandshakeAddress(ctx, s.Name)
	if err != nil {
		return "", err
	}
	host, _, err := net.SplitHostPort(peer)
	if err != nil {
		return "", status.Errorf(status.Metadata, "handshake address of segment %q: %w", s.Name, err)
	}
	return host, nil
}
