package metadata

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/metadata/kv"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// The way of an engine into a central store and out again:
//
//  1. The first Publish claims the name. It removes the entry of a predecessor if no engine answers at the address recorded
//     there. If one answers, it changes nothing and fails.
//  2. rpc_meta says where the engine's handshake port is. It stays as it is, unless it has to be signed again.
//  3. The descriptor is written whenever Publish is called, once there is a data port that it can name (central_publish.go).
//  4. A goroutine checks from time to time that both are still there: a store in memory loses them when it is restarted.
//  5. Withdraw removes both, each only while it is this engine's. Later Publishes write nothing (central_keep.go).
//
// Fetch and HandshakeAddress find other engines (central_fetch.go).

// central is a metadata.Store whose descriptors are in a store that all engines share.
type central struct {
	kv     kv.Store
	prefix string // of every key
	probe  Client
	log    *zap.Logger

	wanted atomic.Uint64 // Publishes that were begun

	turn chan struct{} // holds an element while a call publishes or withdraws; it guards self
	self struct {
		name       string
		meta       rpcMeta
		entry      []byte // rpc_meta, once it may have been written
		entrySeal  uint64 // the generation of what it was signed with
		claimed    bool   // the entry is there, and the name is this engine's
		version    uint64 // of what was written last, or of what a predecessor left; 0 before
		descriptor []byte // as it was written last; nil before
		generation uint64 // of what the descriptor was signed with
		unsure     bool   // a later descriptor was sent, and may or may not have arrived
		shown      uint64 // Publishes that were begun when the last one that succeeded looked at the engine
		withdrawn  bool
		look       func() *Descriptor // at the engine
	}

	mu    sync.Mutex
	known map[string]rpcMeta // handshake addresses that were found, by key, for when the store does not answer

	closed  context.Context
	close   context.CancelFunc
	keeping sync.WaitGroup
}

// claimReplyTimeout is how long a predecessor that takes a connection may take to answer.
const claimReplyTimeout = 5 * time.Second

func newCentral(store kv.Store, o Options) *central {
	prefix := "mooncake/"
	if o.ClusterID != "" {
		prefix += strings.TrimSuffix(o.ClusterID, "/") + "/"
	}
	log := o.Central.Log
	if log == nil {
		log = zap.NewNop()
	}
	c := &central{
		kv: store, prefix: prefix, log: sampled(log),
		probe: Client{ConnectTimeout: o.ConnectTimeout, ReplyTimeout: claimReplyTimeout, MaxLength: o.MaxLength, Security: o.Security},
		turn:  make(chan struct{}, 1), known: map[string]rpcMeta{},
	}
	c.closed, c.close = context.WithCancel(context.Background())
	if o.KeepInterval > 0 {
		c.keeping.Go(func() { c.keep(o.KeepInterval) })
	}
	return c
}

// addressKey is where the handshake address of a segment's owner is. "ram/x" is the memory of x, by another name.
func (c *central) addressKey(segment string) string {
	return c.prefix + "rpc_meta/" + strings.TrimPrefix(segment, "ram/")
}

// segmentKey is where a segment's descriptor is. A name with a slash contains the kind of the segment.
func (c *central) segmentKey(segment string) string {
	if strings.Contains(segment, "/") {
		return c.prefix + segment
	}
	return c.prefix + "ram/" + segment
}

// acquire waits for the turn. The caller releases it.
func (c *central) acquire(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return c.fail("waiting for another change of the own entries: %w", context.Cause(ctx))
	}
}

func (c *central) release() { <-c.turn }

// Close implements Store.
func (c *central) Close() error {
	c.close()
	c.keeping.Wait()
	return c.kv.Close()
}

// fail is an error about what the store holds.
func (c *central) fail(format string, args ...any) error {
	return status.Errorf(status.Metadata, "metadata store %s: "+format, append([]any{c.kv.Name()}, args...)...)
}
