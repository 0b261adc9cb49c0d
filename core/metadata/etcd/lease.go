package etcd

import (
	"context"
	"maps"
	"slices"
	"time"

	"kvferry/core/metadata/kv"

	"go.uber.org/zap"
)

// The lease that the store's keys hang on:
//
//  1. The first Put gets it from the cluster, and starts its keeper, which renews it.
//  2. When it is lost, the keeper moves its keys to another lease, which has a keeper of its own. A Put that hears of it first
//     gets that other lease.
//  3. Close ends the keepers. The cluster ends the lease when its time is over, and forgets its keys.

// leased is a value, and the lease that its key hangs on.
type leased struct {
	value string
	lease int64
}

const (
	renewalRetry    = 500 * time.Millisecond // after a renewal that failed
	restoreInterval = time.Second            // between attempts to replace a lost lease
)

// grant gets a lease, unless there is one, or is to be none. The caller holds writing.
func (s *store) grant(ctx context.Context) error {
	if s.ttl == 0 || s.lease != 0 {
		return nil
	}
	lease, ttl, err := s.client.grant(ctx, s.ttl)
	if err != nil {
		return err
	}
	s.lease = lease
	s.keepers.Go(func() { s.keep(lease, ttl) })
	return nil
}

// keep renews a lease until the store is closed, and replaces it when it is lost.
func (s *store) keep(lease int64, ttl time.Duration) {
	s.renewUntilLost(lease, ttl)
	retry := time.NewTicker(restoreInterval)
	defer retry.Stop()
	for s.ctx.Err() == nil {
		err := s.restore(lease)
		if err == nil {
			return
		}
		s.log.Warn("the lease on the entries in etcd is lost, and will be replaced", zap.String("store", s.address), zap.Error(err))
		select {
		case <-retry.C:
		case <-s.ctx.Done():
		}
	}
}

// renewUntilLost renews a lease each time when a third of its time has passed. It returns when the cluster says that the lease
// has ended, when nobody has renewed it for its whole time, and when the store is closed.
func (s *store) renewUntilLost(lease int64, ttl time.Duration) {
	ends := time.Now().Add(ttl)
	timer := time.NewTimer(ttl / 3)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			return
		}
		ctx, done := kv.Within(s.ctx, s.limit)
		left, err := s.client.keepAlive(ctx, lease)
		done()
		switch {
		case err == nil && left == 0, err != nil && time.Now().After(ends):
			return
		case err == nil:
			ends = time.Now().Add(left)
			timer.Reset(left / 3)
		default:
			timer.Reset(min(ttl/3, renewalRetry))
		}
	}
}

// restore puts the keys of a lost lease again.
func (s *store) restore(lost int64) error {
	ctx, done := kv.Within(s.ctx, s.limit)
	defer done()
	if err := s.writing.take(ctx); err != nil {
		return err
	}
	defer s.writing.give()
	if s.lease == lost {
		s.lease = 0
	}
	for _, key := range slices.Sorted(maps.Keys(s.ours)) {
		if err := s.grant(ctx); err != nil {
			return err
		}
		held := s.ours[key]
		if held.lease == s.lease {
			continue
		}
		if err := s.putAgain(ctx, key, held.value); err != nil {
			return err
		}
	}
	return nil
}

// putAgain puts a key that hung on a lost lease on the lease, unless another client has put it since. The caller holds
// writing.
func (s *store) putAgain(ctx context.Context, key, value string) error {
	for {
		held, there, err := s.client.get(ctx, key) // the revision of a missing key is 0, as the condition wants it
		if err != nil {
			return err
		}
		if there && string(held.value) != value {
			s.log.Warn("an entry in etcd was lost with its lease, and another client has put it since", zap.String("store", s.address), zap.String("key", key))
			delete(s.ours, key)
			return nil
		}
		done, err := s.client.putIf(ctx, held.revision, key, value, s.lease)
		if err != nil {
			return err
		}
		if done {
			s.ours[key] = leased{value, s.lease}
			return nil
		}
	}
}
