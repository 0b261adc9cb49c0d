package core

import (
	"context"
	"time"

	"kvferry/core/metadata"
	"kvferry/core/metrics"
)

// measuredStore counts the requests to a store, and how long they take.
type measuredStore struct {
	metadata.Store
	counters *metrics.Engine
}

func (s *measuredStore) Publish(ctx context.Context, handshake string, self func() *metadata.Descriptor) error {
	begun := time.Now()
	err := s.Store.Publish(ctx, handshake, self)
	s.counters.Publications.Observe(time.Since(begun), err)
	return err
}

func (s *measuredStore) Fetch(ctx context.Context, segment string) (*metadata.Descriptor, error) {
	begun := time.Now()
	d, err := s.Store.Fetch(ctx, segment)
	s.counters.Fetches.Observe(time.Since(begun), err)
	return d, err
}

func (s *measuredStore) HandshakeAddress(ctx context.Context, segment string) (string, error) {
	begun := time.Now()
	address, err := s.Store.HandshakeAddress(ctx, segment)
	s.counters.Addresses.Observe(time.Since(begun), err)
	return address, err
}
