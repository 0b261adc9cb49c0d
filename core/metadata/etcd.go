package metadata

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
)

// EtcdOptions are the settings of an etcd store that others do not have.
type EtcdOptions struct {
	Username, Password string        // "" for none
	TLS                bool          // connections are over TLS
	Lease              time.Duration // after which etcd forgets what an engine put that is no more; whole seconds; 0: never
}

// etcdStore is a kv in an etcd cluster.
//
// What it puts hangs on one lease, which the client keeps alive. Where the lease is lost, because the cluster was away
// for too long or has lost its data, there is a new one, and what hung on the old one is put again: but for keys that
// hold something else by then, which are somebody else's.
type etcdStore struct {
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

// newEtcd makes the store at "host:port;host:port". Nothing is connected yet. An error carries status.InvalidArgument.
func newEtcd(servers string, o StoreOptions, e EtcdOptions, log *zap.Logger) (kv, error) {
	if log == nil {
		log = zap.NewNop()
	}
	connect := orDefault(o.ConnectTimeout, DefaultStoreTimeout)
	s := &etcdStore{
		limit: orDefault(o.ReplyTimeout, DefaultStoreTimeout), ttl: e.Lease, log: log,
		connecting: newTurn(), writing: newTurn(), ours: map[string]leased{},
		config: clientv3.Config{
			Username: e.Username, Password: e.Password, DialTimeout: connect, Logger: zap.NewNop(),
			DialKeepAliveTime: silentFor, DialKeepAliveTimeout: connect,
			MaxUnaryRetries: attempts, MaxCallSendMsgSize: 2 * maxValue, MaxCallRecvMsgSize: 2 * maxValue,
			DialOptions: []grpc.DialOption{
				grpc.WithNoProxy(), grpc.WithChainUnaryInterceptor(withoutPatience),
				grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: connect}),
			},
		},
	}
	for server := range strings.SplitSeq(servers, ";") {
		server, err := hostPort(server, "2379")
		if err != nil {
			return nil, err
		}
		s.config.Endpoints = append(s.config.Endpoints, server)
	}
	s.address = "etcd://" + strings.Join(s.config.Endpoints, ";")
	if e.TLS {
		var err error
		if s.config.TLS, err = o.tls(); err != nil {
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

func (s *etcdStore) name() string { return s.address }

func (s *etcdStore) get(ctx context.Context, key string) (value []byte, found bool, err error) {
	err = s.request(ctx, "getting", key, func(ctx context.Context, client *clientv3.Client) error {
		answer, err := client.Get(ctx, key)
		if grpcstatus.Code(err) == codes.ResourceExhausted {
			return errTooLong
		}
		if err != nil || len(answer.Kvs) == 0 {
			return err
		}
		value, found = withoutNewline(answer.Kvs[0].Value), true
		if len(value) > maxValue {
			return errTooLong
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	return value, found, nil
}

func (s *etcdStore) put(ctx context.Context, key string, value []byte) error {
	return s.request(ctx, "putting", key, func(ctx context.Context, client *clientv3.Client) error {
		if len(withoutNewline(value)) > maxValue {
			return errTooLong
		}
		if err := s.writing.take(ctx); err != nil {
			return err
		}
		defer s.writing.give()
		err := s.putLeased(ctx, client, key, withNewline(value))
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			s.lease = 0 // its keeper restores the other keys, when it hears of it
			err = s.putLeased(ctx, client, key, withNewline(value))
		}
		return err
	})
}

// putLeased puts a key on the lease. The caller holds writing.
func (s *etcdStore) putLeased(ctx context.Context, client *clientv3.Client, key, value string) error {
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

func (s *etcdStore) remove(ctx context.Context, key string, value []byte) error {
	return s.request(ctx, "removing", key, func(ctx context.Context, client *clientv3.Client) error {
		if err := s.writing.take(ctx); err != nil {
			return err
		}
		defer s.writing.give()
		if held, ok := s.ours[key]; ok && held.value == withNewline(value) {
			delete(s.ours, key) // also if the cluster does not answer: it is not to come back
		}
		for {
			held, there, unchanged, err := look(ctx, client, key)
			if err != nil || !there || !bytes.Equal(withoutNewline(held), withoutNewline(value)) {
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
func (s *etcdStore) request(ctx context.Context, what, key string, f func(context.Context, *clientv3.Client) error) error {
	ctx, done := within(ctx, s.limit)
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(errStoreClosed) })()
	client, err := s.connect(ctx)
	if err == nil {
		err = f(ctx, client)
	}
	if err != nil {
		return kvError(ctx, s, what, key, err)
	}
	return nil
}

// connect returns the client. The first call makes it: with a user it logs in, and the next call tries again where that
// fails.
func (s *etcdStore) connect(ctx context.Context) (*clientv3.Client, error) {
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
func (s *etcdStore) grant(ctx context.Context, client *clientv3.Client) error {
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
func (s *etcdStore) keep(client *clientv3.Client, lease clientv3.LeaseID, alive <-chan *clientv3.LeaseKeepAliveResponse) {
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
func (s *etcdStore) restore(client *clientv3.Client, lost clientv3.LeaseID) error {
	ctx, done := within(s.ctx, s.limit)
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
func (s *etcdStore) putAgain(ctx context.Context, client *clientv3.Client, key, value string) error {
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

func (s *etcdStore) close() error {
	s.cancel(errStoreClosed)
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
