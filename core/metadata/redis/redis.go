// Package redis keeps metadata in one database of a Redis server. It registers itself for redis:// and rediss:// with
// package kv.
package redis

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"kvferry/core/metadata/kv"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// store is a kv.Store in one database of a Redis server.
type store struct {
	address string
	limit   time.Duration // of a request
	client  *redis.Client

	ctx     context.Context // ends when the store is closed
	cancel  context.CancelFunc
	mu      sync.Mutex     // keeps requests from beginning once Close waits for them
	running sync.WaitGroup // requests
}

// removeIfSame deletes KEYS[1] while it holds ARGV[1] or ARGV[2].
const removeIfSame = `
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] or held == ARGV[2] then return redis.call('DEL', KEYS[1]) end
return 0`

// quiet turns off the client's own log lines on standard error: the errors say the same.
var quiet = sync.OnceFunc(logging.Disable)

func init() {
	for _, scheme := range []string{"redis", "rediss"} {
		kv.Register(scheme, func(connection string, o kv.Options) (kv.Store, error) { return open(connection, o) })
	}
}

// open makes the store at "redis://host:port", or "rediss://host:port" over TLS. Nothing is connected yet. An error carries
// status.InvalidArgument.
func open(connection string, o kv.Options) (*store, error) {
	quiet()
	scheme, server, _ := strings.Cut(connection, "://")
	server, err := kv.HostPort(server, "6379")
	if err != nil {
		return nil, err
	}
	connect, limit := cmp.Or(o.Connection.ConnectTimeout, kv.DefaultTimeout), cmp.Or(o.Connection.ReplyTimeout, kv.DefaultTimeout)
	var encryption *tls.Config
	if scheme == "rediss" {
		if encryption, err = o.Connection.TLS(); err != nil {
			return nil, err
		}
	}
	s := &store{address: scheme + "://" + server, limit: limit}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.client = redis.NewClient(&redis.Options{
		Addr: server, Username: o.Redis.Username, Password: o.Redis.Password, DB: o.Redis.DB,
		Dialer: func(ctx context.Context, network, server string) (net.Conn, error) {
			ctx, done := context.WithTimeout(ctx, connect)
			defer done()
			defer context.AfterFunc(s.ctx, done)()
			return dialSecure(ctx, network, server, encryption)
		},
		DialTimeout: connect, ReadTimeout: limit, WriteTimeout: limit, PoolTimeout: limit,
		ContextTimeoutEnabled: true, DialerRetries: 1, MaxRetries: -1,
		Protocol: 2, PoolSize: 2, MaxActiveConns: 4, PipelinePoolSize: -1, // an engine makes few requests
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	return s, nil
}

// dialSecure connects, over TLS if encryption is not nil. The error says whether the handshake of TLS failed.
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

func (s *store) Name() string { return s.address }

func (s *store) Get(ctx context.Context, key string) ([]byte, bool, error) {
	var exists *redis.IntCmd
	var held *redis.StringCmd
	err := s.request(ctx, "getting", key, func(ctx context.Context) error {
		_, err := s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
			exists = p.Exists(ctx, key)
			held = p.GetRange(ctx, key, 0, kv.MaxValue+1) // to kv.MaxValue and two more: one too many, and a newline
			return nil
		})
		if err == nil && len(kv.WithoutNewline([]byte(held.Val()))) > kv.MaxValue {
			err = kv.ErrTooLong
		}
		return err
	})
	if err != nil {
		return nil, false, err
	}
	return kv.WithoutNewline([]byte(held.Val())), exists.Val() > 0, nil
}

func (s *store) Put(ctx context.Context, key string, value []byte) error {
	held := string(value) // f may run on after the call, when the caller may change the value
	return s.request(ctx, "putting", key, func(ctx context.Context) error {
		if len(strings.TrimSuffix(held, "\n")) > kv.MaxValue {
			return kv.ErrTooLong
		}
		return s.client.Set(ctx, key, held, 0).Err()
	})
}

func (s *store) Remove(ctx context.Context, key string, value []byte) error {
	plain, line := string(kv.WithoutNewline(value)), kv.WithNewline(value)
	return s.request(ctx, "removing", key, func(ctx context.Context) error {
		return s.client.Eval(ctx, removeIfSame, []string{key}, plain, line).Err()
	})
}

// Keys may leave out keys that come or go while the server is asked.
func (s *store) Keys(ctx context.Context, prefix string, limit int) ([]string, error) {
	var keys []string
	err := s.request(ctx, "listing", prefix, func(ctx context.Context) error {
		found := map[string]struct{}{} // the server may give a key twice
		var listed []string
		for cursor := uint64(0); ; {
			page, next, err := s.client.Scan(ctx, cursor, asPattern(prefix)+"*", kv.PageKeys).Result()
			if err != nil {
				return err
			}
			for _, key := range page {
				if _, twice := found[key]; !twice {
					found[key] = struct{}{}
					listed = append(listed, key)
				}
			}
			if err := kv.CheckCount(listed, limit); err != nil {
				return err
			}
			if cursor = next; cursor == 0 {
				keys = listed
				return nil
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return keys, nil
}

// asPattern is text as a pattern of Redis, in which some characters have a meaning.
func asPattern(text string) string { return special.Replace(text) }

var special = strings.NewReplacer("\\", "\\\\", "*", "\\*", "?", "\\?", "[", "\\[", "]", "\\]")

// request calls f with a ctx that ends with the time for a request and with the store, and adds store, operation and key to
// an error. It returns when ctx ends. f may end later, by its deadline, since the client does not notice a cancellation.
func (s *store) request(ctx context.Context, what, key string, f func(context.Context) error) error {
	ctx, done := kv.Within(ctx, s.limit)
	defer done()
	result := make(chan error, 1)
	if !s.begin(func() { result <- f(ctx) }) {
		return kv.Failed(ctx, s, what, key, kv.ErrClosed)
	}
	var err error
	select {
	case err = <-result:
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.ctx.Done():
		err = kv.ErrClosed
	}
	if err != nil {
		return kv.Failed(ctx, s, what, key, err)
	}
	return nil
}

// begin runs f in a goroutine, unless the store is closed.
func (s *store) begin(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.running.Go(f)
	return true
}

func (s *store) Close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	defer s.running.Wait()
	if err := s.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return err
	}
	return nil
}
