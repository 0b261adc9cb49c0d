package metadata

import (
	"context"

	"kvferry/core/address"
	"kvferry/core/security"
	"kvferry/core/status"
)

// p2pStore finds peers by their names: a name is the address of the handshake server that has the peer's descriptor.
type p2pStore struct {
	client      Client
	defaultPort int
}

func newP2PStore(o Options) *p2pStore {
	return &p2pStore{
		client:      Client{ConnectTimeout: o.ConnectTimeout, MaxLength: o.MaxLength, Security: o.Security},
		defaultPort: o.DefaultPort,
	}
}

// Publish has nothing to do: the engine's handshake server sends its descriptor to peers.
func (s *p2pStore) Publish(context.Context, string, func() *Descriptor) error { return nil }

func (s *p2pStore) Fetch(ctx context.Context, segment string) (*Descriptor, error) {
	name, err := s.parse(segment)
	if err != nil {
		return nil, err
	}
	d, err := s.client.FetchDescriptor(ctx, name.HostPort())
	if err == nil && s.client.Security.Mode() == security.Require {
		err = checkName(name, d)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (s *p2pStore) HandshakeAddress(_ context.Context, segment string) (string, error) {
	name, err := s.parse(segment)
	if err != nil {
		return "", err
	}
	return name.HostPort(), nil
}

func (s *p2pStore) parse(segment string) (address.Name, error) {
	name, err := address.Parse(segment, s.defaultPort)
	if err != nil {
		return name, status.Errorf(status.InvalidArgument, "segment: %w", err)
	}
	if name.Port == 0 {
		return name, status.Errorf(status.InvalidArgument, "segment %q: no peer is reached at port 0", segment)
	}
	return name, nil
}

func (s *p2pStore) Withdraw(context.Context) error { return nil }

func (s *p2pStore) Close() error { return nil }
