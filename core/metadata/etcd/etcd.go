// Package etcd keeps metadata in an etcd cluster. It registers itself for etcd:// with package kv.
package etcd

import (
	"bytes"
	"cmp"
	"context"
	"strings"
	"sync"
	"time"

	"kvferry/core/metadata/kv"

	"go.uber.org/zap"
)

// store is a kv.Store in an etcd cluster.
//
// What it puts hangs on one lease, which it renews. Where the lease is lost, because the cluster was away for too long or has
// lost its data, the store gets a new one, and puts again what hung on the old one, but for keys that another client has put
// since.
type store struct {
	address string
	client  *client
	limit   time.Duration // of a request
	ttl     time.Duration // of the lease; 0: there is none
	log     *zap.Logger

	ctx    context.Context // ends when the store is closed
	cancel context.CancelCauseFunc

	writing turn              // held while keys change; it guards lease and ours
	lease   int64             // for the next Put; 0: it gets one
	ours    map[string]leased // what was put and not removed, by key
	keepers sync.WaitGroup    // of leases
}

func init() {
	kv.Register("etcd", func(connection string, o kv.Options) (kv.Store, error) { return open(connection, o) })
}

// open makes the store at "etcd://host:port;host:port". Nothing is connected yet. An error carries status.InvalidArgument.
func open(connection string, o kv.Options) (*store, error) {
	var servers []string
	for server := range strings.SplitSeq(strings.TrimPrefix(connection, "etcd://"), ";") {
		server, err := kv.HostPort(server, "2379")
		if err != nil {
			return nil, err
		}
		servers = append(servers, server)
	}
	d := &dialer{timeout: cmp.Or(o.Connection.ConnectTimeout, kv.DefaultTimeout)}
	if o.Etcd.TLS {
		var err error
		if d.tls, err = o.Connection.TLS(); err != nil {
			return nil, err
		}
	}
	s := &store{
		address: "etcd://" + strings.Join(servers, ";"),
		limit:   cmp.Or(o.Connection.ReplyTimeout, kv.DefaultTimeout), ttl: o.Etcd.Lease, log: cmp.Or(o.Log, zap.NewNop()),
		writing: newTurn(), ours: map[string]leased{},
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	d.ctx = s.ctx
	s.client = &client{user: o.Etcd.Username, password: o.Etcd.Password, limit: s.limit, loggingIn: newTurn()}
	for _, server := range servers {
		s.client.endpoints = append(s.client.endpoints, newEndpoint(server, d))
	}
	return s, nil
}

func (s *store) Name() string { return s.address }

func (s *store) Get(ctx context.Context, key string) (value []byte, found bool, err error) {
	err = s.request(ctx, "getting", key, func(ctx context.Context) error {
		e, there, err := s.client.get(ctx, key)
		if err != nil || !there {
			return err
		}
		value, found = kv.WithoutNewline(e.value), true
		if len(value) > kv.MaxValue {
			return kv.ErrTooLong
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	return value, found, nil
}

func (s *store) Put(ctx context.Context, key string, value []byte) error {
	return s.request(ctx, "putting", key, func(ctx context.Context) error {
		if len(kv.WithoutNewline(value)) > kv.MaxValue {
			return kv.ErrTooLong
		}
		if err := s.writing.take(ctx); err != nil {
			return err
		}
		defer s.writing.give()
		err := s.putLeased(ctx, key, kv.WithNewline(value))
		if says(err, leaseNotFound) {
			s.lease = 0 // its keeper restores the other keys when its next renewal fails
			err = s.putLeased(ctx, key, kv.WithNewline(value))
		}
		return err
	})
}

// putLeased puts a key on the lease. The caller holds writing.
func (s *store) putLeased(ctx context.Context, key, value string) error {
	if err := s.grant(ctx); err != nil {
		return err
	}
	if err := s.client.put(ctx, key, value, s.lease); err != nil {
		return err
	}
	if s.lease != 0 {
		s.ours[key] = leased{value, s.lease}
	}
	return nil
}

func (s *store) Remove(ctx context.Context, key string, value []byte) error {
	return s.request(ctx, "removing", key, func(ctx context.Context) error {
		if err := s.writing.take(ctx); err != nil {
			return err
		}
		defer s.writing.give()
		if held, ok := s.ours[key]; ok && held.value == kv.WithNewline(value) {
			delete(s.ours, key) // even if the cluster does not answer: restore must not put it again
		}
		for {
			held, there, err := s.client.get(ctx, key)
			if err != nil || !there || !bytes.Equal(kv.WithoutNewline(held.value), kv.WithoutNewline(value)) {
				return err
			}
			done, err := s.client.removeIf(ctx, held.revision, key)
			if err != nil || done {
				return err
			}
		}
	})
}

func (s *store) Keys(ctx context.Context, prefix string, limit int) (keys []string, err error) {
	err = s.request(ctx, "listing", prefix, func(ctx context.Context) error {
		from, end := prefix, afterPrefix(prefix)
		for {
			page, more, err := s.client.keys(ctx, from, end, kv.PageKeys)
			if err != nil {
				return err
			}
			keys = append(keys, page...)
			if err := kv.CheckCount(keys, limit); err != nil || !more || len(page) == 0 {
				return err
			}
			from = page[len(page)-1] + "\x00"
		}
	})
	if err != nil {
		return nil, err
	}
	return keys, nil
}

// afterPrefix is the first key after all those that begin with a prefix: the end of a range in etcd's API. A zero byte, which
// stands for no end, where there is no such key.
func afterPrefix(prefix string) string {
	end := []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return string(end[:i+1])
		}
	}
	return "\x00"
}

// request calls f with ctx, which ends with the time for a request and with the store, and puts
// before an error what it is about.
func (s *store) request(ctx context.Context, what, key string, f func(context.Context) error) error {
	ctx, done := kv.Within(ctx, s.limit)
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(kv.ErrClosed) })()
	err := context.Cause(s.ctx)
	if err == nil {
		err = f(ctx)
	}
	if err != nil {
		return kv.Failed(ctx, s, what, key, err)
	}
	return nil
}

func (s *store) Close() error {
	s.cancel(kv.ErrClosed)
	s.writing <- struct{}{} // requests have ended, or end now
	defer s.writing.give()
	s.keepers.Wait()
	s.client.close()
	return nil
}

// turn is a lock. take gives up when a context ends.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }
