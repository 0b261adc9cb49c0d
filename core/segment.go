package core

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"sync/atomic"

	"kvferry/core/address"
	"kvferry/core/metadata"
	"kvferry/core/metrics"
	"kvferry/core/status"
)

// Segment is a peer's memory, opened by name. A pointer to it stays valid as long as the engine, also after it was removed.
type Segment struct {
	ID   SegmentID
	Name string

	store      metadata.Store
	central    bool // descriptors come from a store that engines share, and not from the owner
	descriptor atomic.Pointer[metadata.Descriptor]
	proof      proof
	removed    atomic.Bool
	counters   *metrics.Peer
	address    atomic.Pointer[net.Addr] // of the last data connection; nil before one was up

	mu       sync.Mutex
	fetching *fetch // the fetch that is under way, or nil
}

// Descriptor is the cached descriptor of the segment. It is shared, and never changed.
func (s *Segment) Descriptor() *metadata.Descriptor { return s.descriptor.Load() }

// NoteAddress is called by a transport when a data connection to an address is up.
func (s *Segment) NoteAddress(a net.Addr) { s.address.Store(&a) }

// lastAddress is where the last data connection went; "" before one was up, and for a work without a segment, as tests make them.
func (s *Segment) lastAddress() string {
	if s == nil {
		return ""
	}
	if a := s.address.Load(); a != nil {
		return (*a).String()
	}
	return ""
}

// Counters are those of the segment's owner, also after the segment was removed.
func (s *Segment) Counters() *metrics.Peer {
	if s.counters == nil { // of a test
		return &metrics.Peer{}
	}
	return s.counters
}

// errRemoved is in the error of Removed.
var errRemoved = errors.New("was removed")

// Removed is why no transport takes work for the segment any more; nil while it is open.
func (s *Segment) Removed() error {
	if s.removed.Load() {
		return status.Errorf(status.InvalidArgument, "segment %q %w", s.Name, errRemoved)
	}
	return nil
}

// DataHosts are the hosts to try for the data port in a descriptor of the segment, without brackets, in their order: the host that
// the descriptor names, and the host of its owner's handshake port. They differ if the owner knows itself by another address than
// this engine does, behind NAT or in a container. The host of the handshake port comes first if the descriptor names a loopback
// address or no host. It is left out if the owner has no identity and the descriptor comes from a store: the engine could not
// find out whose data port is there.
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

// AskedAt is where the owner was asked for its descriptor; ok is false where nobody was asked, because it comes from a store.
func (s *Segment) AskedAt(ctx context.Context) (host string, port int, ok bool) {
	if s.central {
		return "", 0, false
	}
	peer, err := s.store.HandshakeAddress(ctx, s.Name)
	if err != nil {
		return "", 0, false
	}
	host, text, _ := net.SplitHostPort(peer)
	port, err = strconv.Atoi(text)
	return host, port, err == nil
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
