// Package metadatatest has a metadata store in memory, for tests of what uses one.
package metadatatest

import (
	"context"
	"sync"

	"kvferry/core/metadata"
	"kvferry/core/status"
)

// Operation is a method of metadata.Store that can be made to fail.
type Operation string

// The operations.
const (
	Publish          Operation = "publish"
	Fetch            Operation = "fetch"
	HandshakeAddress Operation = "handshake address"
	Withdraw         Operation = "withdraw"
)

// Directory is what the stores of several engines share. Its methods may be called from any goroutine.
type Directory struct {
	mu        sync.Mutex
	published map[string]publication // by segment name
	addresses map[string]string      // by segment name, see SetAddress
	fetches   map[string]int
	fault     func(op Operation, segment string) error
}

// publication is a descriptor and the store that published it.
type publication struct {
	by   *Store
	self func() *metadata.Descriptor
}

// NewDirectory makes one in which nothing is published.
func NewDirectory() *Directory {
	return &Directory{
		published: make(map[string]publication),
		addresses: make(map[string]string),
		fetches:   make(map[string]int),
	}
}

// Store makes the store of one engine.
func (d *Directory) Store() *Store { return &Store{directory: d} }

// SetFault makes operations fail with what fault returns for them; nil lets them pass. Withdraw's segment is the one
// that was published.
func (d *Directory) SetFault(fault func(op Operation, segment string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = fault
}

// SetAddress sets the handshake address of a segment. Without one it is the segment's name, as in P2P mode.
func (d *Directory) SetAddress(segment, hostPort string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addresses[segment] = hostPort
}

// Fetches counts the descriptors of a segment that were asked for.
func (d *Directory) Fetches(segment string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fetches[segment]
}

// check is what keeps an operation from being done.
func (d *Directory) check(ctx context.Context, op Operation, segment string) error {
	if err := ctx.Err(); err != nil {
		return status.Errorf(status.Metadata, "%s %q: %w", op, segment, err)
	}
	d.mu.Lock()
	fault := d.fault
	d.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(op, segment)
}

// Store is one engine's view of a directory.
type Store struct {
	directory *Directory

	mu   sync.Mutex
	name string // what this store has published; "" for nothing
}

var _ metadata.Store = (*Store)(nil)

// Publish implements metadata.Store.
func (s *Store) Publish(ctx context.Context, _ string, self func() *metadata.Descriptor) error {
	name := self().Name
	if err := s.directory.check(ctx, Publish, name); err != nil {
		return err
	}
	if err := s.Withdraw(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name = name
	s.directory.mu.Lock()
	defer s.directory.mu.Unlock()
	s.directory.published[name] = publication{by: s, self: self}
	return nil
}

// Fetch implements metadata.Store. The descriptor has been encoded and parsed, as any peer's has.
func (s *Store) Fetch(ctx context.Context, segment string) (*metadata.Descriptor, error) {
	s.directory.mu.Lock()
	s.directory.fetches[segment]++
	self := s.directory.published[segment].self
	s.directory.mu.Unlock()
	if err := s.directory.check(ctx, Fetch, segment); err != nil {
		return nil, err
	}
	if self == nil {
		return nil, status.Errorf(status.Metadata, "segment %q is not published", segment)
	}
	encoded, _ := self().Encode(metadata.DefaultMaxLength)
	return metadata.ParseDescriptor(encoded)
}

// HandshakeAddress implements metadata.Store.
func (s *Store) HandshakeAddress(ctx context.Context, segment string) (string, error) {
	if err := s.directory.check(ctx, HandshakeAddress, segment); err != nil {
		return "", err
	}
	s.directory.mu.Lock()
	defer s.directory.mu.Unlock()
	if s.directory.published[segment].by == nil {
		return "", status.Errorf(status.Metadata, "segment %q is not published", segment)
	}
	if hostPort, ok := s.directory.addresses[segment]; ok {
		return hostPort, nil
	}
	return segment, nil
}

// Withdraw implements metadata.Store.
func (s *Store) Withdraw(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.name == "" {
		return nil
	}
	if err := s.directory.check(ctx, Withdraw, s.name); err != nil {
		return err
	}
	s.directory.mu.Lock()
	defer s.directory.mu.Unlock()
	if s.directory.published[s.name].by == s {
		delete(s.directory.published, s.name)
	}
	s.name = ""
	return nil
}

// Close implements metadata.Store.
func (s *Store) Close() error { return nil }
