package metadata

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// RedisOptions are the settings of a Redis store that others do not have.
type RedisOptions struct {
	Username, Password string // "" for none; a user name needs a password
	DB                 int    // which of the server's databases
}

// redisStore is a kv in one database of a Redis server.
type redisStore struct {
	address string
	limit   time.Duration // of a request
	client  *redis.Client

	ctx     context.Context // ends when the store is closed
	cancel  context.CancelFunc
	mu      sync.Mutex     // makes sure that no request begins once close waits for them
	running sync.WaitGroup // requests
}

// removeIfSame deletes KEYS[1] while it holds ARGV[1] or ARGV[2].
const removeIfSame = `
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] or held == ARGV[2] then return redis.call('DEL', KEYS[1]) end
return 0`

// quietRedis keeps the client's own log lines off standard error: what fails is in the errors.
var quietRedis = sync.OnceFunc(logging.Disable)

// newRedis makes the store at "host:port", over TLS if secure. Nothing is connected yet. An error carries
// status.InvalidArgument.
func newRedis(server string, secure bool, o StoreOptions, r RedisOptions) (kv, error) {
	quietRedis()
	server, err := hostPort(server, "6379")
	if err != nil {
		return nil, err
	}
	connect, limit := orDefault(o.ConnectTimeout, DefaultStoreTimeout), orDefault(o.ReplyTimeout, DefaultStoreTimeout)
	address := "redis://" + server
	var encryption *tls.Config
	if secure {
		address = "rediss://" + server
		if encryption, err = o.tls(); err != nil {
			return nil, err
		}
	}
	s := &redisStore{address: address, limit: limit}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.client = redis.NewClient(&redis.Options{
		Addr: server, Username: r.Username, Password: r.Password, DB: r.DB,
		Dialer: func(ctx context.Context, network, server string) (net.Conn, error) {
			ctx, done := context.WithTimeout(ctx, connect)
			defer done()
			defer context.AfterFunc(s.ctx, done)()
			return dialSecure(ctx, network, server, encryption)
		},
		DialTimeout: connect, ReadTimeout: limit, WriteTimeout: limit, PoolTimeout: limit,
		ContextTimeoutEnabled: true, DialerRetries: 1, MaxRetries: -1,
		Protocol: 2, PoolSize: 2, MaxActiveConns: 4, PipelinePoolSize: -1, // an engine asks seldom
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	return s, nil
}

// dialSecure connects, over TLS if encryption is not nil, and says which of the two failed.
func dialSecure(ctx context.Context, network, server string, encryption *tls.Config) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, server)
	if err != nil || encryption == nil {
		return conn, err
	}
	config := encryption.Clone()
	if config.ServerName, _, err = net.SplitHostPort(server); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return secure, nil
}

func (s *redisStore) name() string { return s.address }

func (s *redisStore) get(ctx context.Context, key string) ([]byte, bool, error) {
	var exists *redis.IntCmd
	var held *redis.StringCmd
	err := s.request(ctx, "getting", key, func(ctx context.Context) error {
		_, err := s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
			exists = p.Exists(ctx, key)
			held = p.GetRange(ctx, key, 0, maxValue+1) // to maxValue and two more: one too many, and a newline
			return nil
		})
		if err == nil && len(withoutNewline([]byte(held.Val()))) > maxValue {
			err = errTooLong
		}
		return err
	})
	if err != nil {
		return nil, false, err
	}
	return withoutNewline([]byte(held.Val())), exists.Val() > 0, nil
}

func (s *redisStore) put(ctx context.Context, key string, value []byte) error {
	held := string(value) // f may outlast the call, and the value is the caller's
	return s.request(ctx, "putting", key, func(ctx context.Context) error {
		if len(strings.TrimSuffix(held, "\n")) > maxValue {
			return errTooLong
		}
		return s.client.Set(ctx, key, held, 0).Err()
	})
}

func (s *redisStore) remove(ctx context.Context, key string, value []byte) error {
	plain, line := string(withoutNewline(value)), withNewline(value)
	return s.request(ctx, "removing", key, func(ctx context.Context) error {
		return s.client.Eval(ctx, removeIfSame, []string{key}, plain, line).Err()
	})
}

// request calls f with ctx, which ends with the time for a request and with the store, and puts before an error what it
// is about. When ctx ends it returns: the client looks at deadlines alone, and f is left to end by itself.
func (s *redisStore) request(ctx context.Context, what, key string, f func(context.Context) error) error {
	ctx, done := within(ctx, s.limit)
	defer done()
	result := make(chan error, 1)
	if !s.begin(func() { result <- f(ctx) }) {
		return kvError(ctx, s, what, key, errStoreClosed)
	}
	var err error
	select {
	case err = <-result:
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.ctx.Done():
		err = errStoreClosed
	}
	if err != nil {
		return kvError(ctx, s, what, key, err)
	}
	return nil
}

// begin runs f in a goroutine, unless the store is closed.
func (s *redisStore) begin(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.running.Go(f)
	return true
}

func (s *redisStore) close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	defer s.running.Wait()
	if err := s.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return err
	}
	return nil
}
