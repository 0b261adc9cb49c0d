package metadata

import "context"

// Notification is a short message from one engine to another.
type Notification struct {
	Name string
	Text string
}

// Store is where segment descriptors are published and found, and how a peer's handshake port is found.
//
// Every method may be called from any goroutine at any time. Each returns by the context's deadline, or by the
// store's own time-out where that is sooner. Errors carry a status.Code and name the peer or the store, and what failed.
type Store interface {
	// Publish makes the engine's own descriptor visible to peers, replacing what it published before. handshake is
	// "host:port" of its handshake port, and always the same. The function is called whenever a current descriptor is
	// wanted, from any goroutine.
	Publish(ctx context.Context, handshake string, self func() *Descriptor) error
	// Fetch returns the descriptor of a segment as it is now, never a cached one.
	Fetch(ctx context.Context, segment string) (*Descriptor, error)
	// HandshakeAddress returns "host:port" of the handshake port of the engine that owns a segment.
	HandshakeAddress(ctx context.Context, segment string) (string, error)
	// Withdraw removes what Publish made visible, before the engine ends. It is not an error when nothing was published.
	Withdraw(ctx context.Context) error
	// Close ends what the store keeps running and withdraws nothing.
	Close() error
}
