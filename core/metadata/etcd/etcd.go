// Package etcd keeps metadata in an etcd cluster. It registers itself for etcd:// with package kv.
package etcd

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"kvferry/core/metadata/kv"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
)

// store is a kv.Store in an etcd cluster.
//
// What it puts hangs on one lease, which the client keeps alive. Where the lease is lost, because the cluster was away
// for too long or has lost its data, there is a new one, and what hung on the old one is put again: but for keys that
// hold something else by then, which are somebody else's.
type store struct {
	address string
	config  clientv3.Config
	limit   time.Duration // of a request
	ttl     time.Duration // of the lease; 0: there is none
	log     *zap.Logger

	ctx    context.Context // ends when the store is closed
	cancel context.CancelCauseFunc

	connecting turn             // held by who looks at client
	client     *clientv3.Client // nil until the first request: to log in takes an answer of the cluster

	writing turn // held by who changes keys, and looks at what follows
	lease   clientv3.LeaseID
	ours    map[string]leased // what was put and not removed
	keepers sync.WaitGroup    // of leases
}

// leased is a value, and the lease that its key hangs on.
type leased struct {
	value string
	lease clientv3.LeaseID
}

// reconnect is how long the client waits after a failed connection, of each end point.
var reconnect = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

const (
	restoreInterval = time.Second      // between attempts to replace a lost lease
	attempts        = 3                // of a request, where the client knows that the first one did nothing
	silentFor       = 10 * time.Second // until the client asks whether a silent cluster is still there
)

func init() {
	kv.Register("etcd", func(connection string, o kv.Options) (kv.Store, error) { return open(connection, o) })
}

// open makes the store at "etcd://host:port;host:port". Nothing is connected yet. An error carries status.InvalidArgument.
func open(connection string, o kv.Options) (*store, error) {
	e, log := o.Etcd, o.Log
	if log == nil {
		log = zap.NewNop()
	}
	connect := cmp.Or(o.Connection.ConnectTimeout, kv.DefaultTimeout)
	s := &store{
		limit: cmp.Or(o.Connection.ReplyTimeout, kv.DefaultTimeout), ttl: e.Lease, log: log,
		connecting: newTurn(), writing: newTurn(), ours: map[string]leased{},
		config: clientv3.Config{
			Username: e.Username, Password: e.Password, DialTimeout: connect, Logger: zap.NewNop(),
			DialKeepAliveTime: silentFor, DialKeepAliveTimeout: connect,
			MaxUnaryRetries: attempts, MaxCallSendMsgSize: 2 * kv.MaxValue, MaxCallRecvMsgSize: 2 * kv.MaxValue,
			DialOptions: []grpc.DialOption{
				grpc.WithNoProxy(), grpc.WithChainUnaryInterceptor(withoutPatience),
				grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: connect}),
			},
		},
	}
	for server := range strings.SplitSeq(strings.TrimPrefix(connection, "etcd://"), ";") {
		server, err := kv.HostPort(server, "2379")
		if err != nil {
			return nil, err
		}
		s.config.Endpoints = append(s.config.Endpoints, server)
	}
	s.address = "etcd://" + strings.Join(s.config.Endpoints, ";")
	if e.TLS {
		var err error
		if s.config.TLS, err = o.Connection.TLS(); err != nil {
			return nil, err
		}
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

// withoutPatience makes a request that finds no connection fail with what is wrong with the last one, where the client
// would wait for another one until the request's time is over.
func withoutPatience(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, next grpc.UnaryInvoker, o ...grpc.CallOption) error {
	return next(ctx, method, request, reply, conn, append(o, grpc.WaitForReady(false))...)
}

func (s *store) Name() string { return s.address }

func (s *store) Get(ctx context.Context, key string) (value []byte, found bool, err error) {
	err = s.request(ctx, "getting", key, func(ctx context.Context, client *clientv3.Client) error {
		answer, err := client.Get(ctx, key)
		if grpcstatus.Code(err) == codes.ResourceExhausted {
			return kv.ErrTooLong
		}
		if err != nil || len(answer.Kvs) == 0 {
			return err
		}
		value, found = kv.WithoutNewline(answer.Kvs[0].Value), true
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
	return s.request(ctx, "putting", key, func(ctx context.Context, client *clientv3.Client) error {
		if len(kv.WithoutNewline(value)) > kv.MaxValue {
			return kv.ErrTooLong
		}
		if err := s.writing.take(ctx); err != nil {
			return err
		}
		defer s.writing.give()
		err := s.putLeased(ctx, client, key, kv.WithNewline(value))
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			s.lease = 0 // its keeper restores the other keys, when it hears of it
			err = s.putLeased(ctx, client, key, kv.WithNewline(value))
		}
		return err
	})
}

// putLeased puts a key on the lease. The caller holds writing.
func (s *store) putLeased(ctx context.Context, client *clientv3.Client, key, value string) error {
	if err := s.grant(ctx, client); err != nil {
		return err
	}
	if _, err := client.Put(ctx, key, value, clientv3.WithLease(s.lease)); err != nil {
		return err
	}
	if s.lease != 0 {
		s.ours[key] = leased{value, s.lease}
	}
	return nil
}

func (s *store) Remove(ctx context.Context, key string, value []byte) error {
	return s.request(ctx, "removing", key, func(ctx context.Context, client *clientv3.Client) error {
		if err := s.writing.take(ctx); err != nil {
			return err
		}
		defer s.writing.give()
		if held, ok := s.ours[key]; ok && held.value == kv.WithNewline(value) {
			delete(s.ours, key) // also if the cluster does not answer: it is not to come back
		}
		for {
			held, there, unchanged, err := look(ctx, client, key)
			if err != nil || !there || !bytes.Equal(kv.WithoutNewline(held), kv.WithoutNewline(value)) {
				return err
			}
			answer, err := client.Txn(ctx).If(unchanged).Then(clientv3.OpDelete(key)).Commit()
			if err != nil || answer.Succeeded {
				return err
			}
		}
	})
}

// look returns what a key holds, and the condition that this is so still. The condition is short, as the value need not
// be, and etcd has a limit for a request.
func look(ctx context.Context, client *clientv3.Client, key string) (value []byte, there bool, unchanged clientv3.Cmp, err error) {
	answer, err := client.Get(ctx, key)
	if err != nil {
		return nil, false, unchanged, err
	}
	revision := int64(0) // what a missing key is compared as
	if there = len(answer.Kvs) > 0; there {
		value, revision = answer.Kvs[0].Value, answer.Kvs[0].ModRevision
	}
	return value, there, clientv3.Compare(clientv3.ModRevision(key), "=", revision), nil
}

// request calls f with the client and with ctx, which ends with the time for a request and with the store, and puts
// before an error what it is about.
func (s *store) request(ctx context.Context, what, key string, f func(context.Context, *clientv3.Client) error) error {
	ctx, done := kv.Within(ctx, s.limit)
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(kv.ErrClosed) })()
	client, err := s.connect(ctx)
	if err == nil {
		err = f(ctx, client)
	}
	if err != nil {
		return kv.Failed(ctx, s, what, key, err)
	}
	return nil
}

// connect returns the client. The first call makes it: with a user it logs in, and the next call tries again where that
// fails.
func (s *store) connect(ctx context.Context) (*clientv3.Client, error) {
	if err := s.connecting.take(ctx); err != nil {
		return nil, err
	}
	defer s.connecting.give()
	if s.ctx.Err() != nil {
		return nil, context.Cause(s.ctx)
	}
	if s.client != nil {
		return s.client, nil
	}
	config := s.config
	var abandon context.CancelFunc
	config.Context, abandon = context.WithCancel(s.ctx)
	stop := context.AfterFunc(ctx, abandon)
	client, err := clientv3.New(config)
	if err != nil {
		abandon()
		return nil, err
	}
	if !stop() {
		return nil, errors.Join(ctx.Err(), client.Close())
	}
	s.client = client
	return client, nil
}

// grant sees to it that there is a lease, if there is to be one. The caller holds writing.
func (s *store) grant(ctx context.Context, client *clientv3.Client) error {
	if s.ttl == 0 || s.lease != 0 {
		return nil
	}
	granted, err := client.Grant(ctx, int64(s.ttl/time.Second))
	if err != nil {
		return err
	}
	alive, err := client.KeepAlive(s.ctx, granted.ID)
	if err != nil {
		return err
	}
	s.lease = granted.ID
	s.keepers.Go(func() { s.keep(client, granted.ID, alive) })
	return nil
}

// keep watches a lease until the store is closed. When it is lost, it moves its keys to another one, which has a keeper
// of its own.
func (s *store) keep(client *clientv3.Client, lease clientv3.LeaseID, alive <-chan *clientv3.LeaseKeepAliveResponse) {
	for range alive { // until it is lost
	}
	retry := time.NewTicker(restoreInterval)
	defer retry.Stop()
	for s.ctx.Err() == nil {
		err := s.restore(client, lease)
		if err == nil {
			return
		}
		s.log.Warn("the lease on the entries in etcd is lost, and is to be replaced", zap.String("store", s.address), zap.Error(err))
		select {
		case <-retry.C:
		case <-s.ctx.Done():
		}
	}
}

// restore puts again what hung on a lost lease.
func (s *store) restore(client *clientv3.Client, lost clientv3.LeaseID) error {
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
		if err := s.grant(ctx, client); err != nil {
			return err
		}
		held := s.ours[key]
		if held.lease == s.lease {
			continue
		}
		if err := s.putAgain(ctx, client, key, held.value); err != nil {
			return err
		}
	}
	return nil
}

// putAgain puts a key that hung on a lost lease on the lease, unless it is somebody else's by now. The caller holds
// writing.
func (s *store) putAgain(ctx context.Context, client *clientv3.Client, key, value string) error {
	for {
		held, there, unchanged, err := look(ctx, client, key)
		if err != nil {
			return err
		}
		if there && string(held) != value {
			s.log.Warn("an entry in etcd was lost with its lease, and is somebody else's now", zap.String("store", s.address), zap.String("key", key))
			delete(s.ours, key)
			return nil
		}
		answer, err := client.Txn(ctx).If(unchanged).Then(clientv3.OpPut(key, value, clientv3.WithLease(s.lease))).Commit()
		if err != nil {
			return err
		}
		if answer.Succeeded {
			s.ours[key] = leased{value, s.lease}
			return nil
		}
	}
}

func (s *store) Close() error {
	s.cancel(kv.ErrClosed)
	s.writing <- struct{}{} // what waited has ended
	defer s.writing.give()
	s.keepers.Wait()
	s.connecting <- struct{}{}
	defer s.connecting.give()
	if s.client == nil {
		return nil
	}
	client := s.client
	s.client = nil
	if err := client.Close(); err != nil && !errors.Is(err, context.Canceled) { // its context has ended already
		return err
	}
	return nil
}

// turn is a lock that is waited for no longer than a context lasts.
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
