package metadata

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/address"
	"kvferry/core/metadata/kv"
	"kvferry/core/security"
	"kvferry/core/status"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// The way of an engine into a central store and out again:
//
//  1. The first Publish claims the name. It removes the entry of a predecessor if no engine answers at the address recorded
//     there. If one answers, it changes nothing and fails.
//  2. rpc_meta says where the engine's handshake port is. It stays as it is, unless it has to be signed again.
//  3. The descriptor is written whenever Publish is called, once there is a data port that it can name.
//  4. A goroutine checks from time to time that both are still there: a store in memory loses them when it is restarted.
//  5. Withdraw removes both, each only while it is this engine's. Later Publishes write nothing.

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

// rpcMeta is the value of an rpc_meta key.
type rpcMeta struct {
	Host     string  `json:"ip_or_host_name"`
	Identity string  `json:"kvferry_identity,omitempty"` // of the engine, where the entry is signed; Mooncake ignores it
	Version  version `json:"metadata_version,omitempty"`
	Port     int     `json:"rpc_port"`
}

// sameAddress reports whether both are of one handshake port.
func (m rpcMeta) sameAddress(other rpcMeta) bool { return m.Host == other.Host && m.Port == other.Port }

const (
	claimReplyTimeout = 5 * time.Second // for a predecessor that takes the connection
	maxKnown          = 1 << 16         // addresses that are remembered
)

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

// Publish implements Store. While one call writes, the others wait, and the next one writes for all of them.
func (c *central) Publish(ctx context.Context, handshake string, self func() *Descriptor) error {
	wanted := c.wanted.Add(1)
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if c.self.withdrawn || c.self.shown >= wanted {
		return nil
	}
	showing := c.wanted.Load()
	d := self()
	if !c.self.claimed {
		if err := c.claim(ctx, d.Name, handshake); err != nil {
			return err
		}
	}
	c.self.look = self
	if err := c.show(ctx, d); err != nil {
		return err
	}
	c.self.shown = showing
	return nil
}

// show writes a descriptor, unless it has no data port yet.
func (c *central) show(ctx context.Context, d *Descriptor) error {
	if d.DataPort == 0 {
		return nil
	}
	d.Version = c.newVersion()
	generation := c.generation()
	encoded, truncated, err := c.encode(d)
	if err != nil {
		return err
	}
	if truncated {
		c.log.Warn("the segment descriptor does not fit the metadata store, peers see the first buffers only",
			zap.Int("buffers", len(d.Buffers)), zap.Int("bytes", kv.MaxValue))
	}
	if err := c.kv.Put(ctx, c.segmentKey(d.Name), encoded); err != nil {
		c.self.unsure = true
		return err
	}
	c.self.descriptor, c.self.unsure, c.self.generation = encoded, false, generation
	return nil
}

// encode gives the value for a descriptor, signed where security is on.
func (c *central) encode(d *Descriptor) (encoded []byte, truncated bool, err error) {
	if c.probe.Security.Mode() == security.Off {
		encoded, truncated = d.Encode(kv.MaxValue)
		return encoded, truncated, nil
	}
	encoded, truncated = d.Encode(kv.MaxValue - signatureRoom)
	if encoded, err = sign(c.segmentKey(d.Name), encoded, c.probe.Security); err != nil {
		err = status.Errorf(status.Of(err, status.Metadata), "the descriptor of %s: %w", d.Name, err)
	}
	return encoded, truncated, err
}

// generation is that of the secrets or certificates that descriptors are signed with.
func (c *central) generation() uint64 {
	if c.probe.Security.Mode() == security.Off {
		return 0
	}
	return c.probe.Security.Generation()
}

// claim takes the name for this engine, or fails and says which engine has it.
func (c *central) claim(ctx context.Context, name, handshake string) error {
	self, err := metaOf(handshake)
	if err != nil {
		return err
	}
	key := c.addressKey(name)
	found, there, err := c.entry(ctx, key)
	if err != nil {
		return err
	}
	if there != nil {
		// An entry with this engine's own address is a predecessor's: the port is this engine's now.
		if !found.sameAddress(self) {
			if err := c.requireDead(ctx, name, key, found); err != nil {
				return err
			}
		}
		if err := c.kv.Remove(ctx, key, there); err != nil {
			return err
		}
	}
	left, err := c.versionLeft(ctx, name)
	if err != nil {
		return err
	}
	c.self.version = max(left, uint64(found.Version))
	self.Version = version(c.newVersion())
	c.self.name, c.self.meta = name, self
	if err := c.putMeta(ctx, key); err != nil {
		return err
	}
	// Two engines of one name may have come as far as this at once.
	if found, there, err = c.entry(ctx, key); err != nil {
		return err
	}
	if there == nil || !found.sameAddress(self) {
		return c.fail("the name %q was taken by another engine at the same moment, as %s says", name, key)
	}
	c.self.claimed = true
	return nil
}

// putMeta signs the own rpc_meta and writes it.
func (c *central) putMeta(ctx context.Context, key string) error {
	generation := c.generation()
	entry, err := signMeta(key, c.self.meta, c.probe.Security)
	if err != nil {
		return status.Errorf(status.Of(err, status.Metadata), "the address of %s: %w", c.self.name, err)
	}
	c.self.entry, c.self.entrySeal = entry, generation
	return c.kv.Put(ctx, key, entry)
}

// newVersion is the version of a value that is about to be written.
func (c *central) newVersion() uint64 {
	c.self.version = nextVersion(c.self.version)
	return c.self.version
}

// versionLeft is the version of a predecessor's descriptor; 0 where there is none, or it cannot be read.
func (c *central) versionLeft(ctx context.Context, name string) (uint64, error) {
	value, _, err := c.kv.Get(ctx, c.segmentKey(name))
	if err != nil {
		return 0, err
	}
	var left struct {
		Version version `json:"metadata_version"`
	}
	_ = json.Unmarshal(value, &left)
	return uint64(left.Version), nil
}

// entry reads an rpc_meta key; there is the value as it stands, nil for none.
func (c *central) entry(ctx context.Context, key string) (found rpcMeta, there []byte, err error) {
	value, ok, err := c.kv.Get(ctx, key)
	if err != nil || !ok {
		return rpcMeta{}, nil, err
	}
	if found, err = parseMeta(value); err != nil {
		return rpcMeta{}, nil, c.fail("the value of %s is no address of an engine: %w; remove the key", key, err)
	}
	return found, value, nil
}

// requireDead returns nil when no engine of this name answers at an address.
func (c *central) requireDead(ctx context.Context, name, key string, at rpcMeta) error {
	answered, err := c.probe.identify(ctx, at.hostPort())
	switch {
	case err == nil && (answered == "" || answered == name):
		return c.fail("the name %q is taken: a live engine answers at %s, which is what %s says; end that engine, or choose "+
			"another name", name, at.hostPort(), key)
	case err == nil, isNobody(err):
		c.log.Info("what an engine left under this name is replaced", zap.String("name", name), zap.String("at", at.hostPort()))
		return nil
	}
	return c.fail("the name %q is taken by an engine at %s, which is what %s says, and it is not known whether that is alive: %w",
		name, at.hostPort(), key, err)
}

// isNobody reports whether the error of a probe means that no engine is at the address: the connection is refused, or
// another service answers. An engine that does not accept this one is somebody.
func isNobody(err error) bool {
	if errors.Is(err, errProbeRefused) || security.IsOfEngine(err) {
		return false
	}
	var unresolved *net.DNSError
	if errors.As(err, &unresolved) {
		return unresolved.IsNotFound
	}
	var failed *net.OpError
	if errors.As(err, &failed) && failed.Op == "dial" {
		return failed.Timeout() || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) ||
			errors.Is(err, unix.ENETUNREACH)
	}
	code := status.Of(err, status.OK)
	return code == status.MalformedJSON || code == status.RejectHandshake
}

// keep restores the own entries from time to time, until the store is closed.
func (c *central) keep(interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-c.closed.Done():
			return
		case <-ticker.C:
		}
		if err := c.restore(c.closed); err != nil && c.closed.Err() == nil {
			c.log.Warn("it is not known whether peers still find this engine", zap.Error(err))
		}
	}
}

// restore writes the own entries again if the store has lost them.
func (c *central) restore(ctx context.Context) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if !c.self.claimed || c.self.withdrawn {
		return nil
	}
	key := c.addressKey(c.self.name)
	there, found, err := c.kv.Get(ctx, key)
	switch {
	case err != nil:
		return err
	case !found:
		if err := c.putMeta(ctx, key); err != nil {
			return err
		}
		return c.show(ctx, c.self.look())
	case !bytes.Equal(there, c.self.entry):
		return c.fail("%s holds another engine's address, %.100q", key, there)
	case c.self.entrySeal != c.generation():
		// Peers may not accept the former signature for long. A server of metadata replaces no rpc_meta.
		if err := c.kv.Remove(ctx, key, there); err != nil {
			return err
		}
		if err := c.putMeta(ctx, key); err != nil {
			return err
		}
		return c.show(ctx, c.self.look())
	case c.self.descriptor != nil && c.self.generation != c.generation():
		return c.show(ctx, c.self.look())
	}
	return nil
}

// Fetch implements Store.
func (c *central) Fetch(ctx context.Context, segment string) (*Descriptor, error) {
	key := c.segmentKey(segment)
	value, found, err := c.kv.Get(ctx, key)
	switch {
	case err != nil:
		return nil, err
	case !found:
		return nil, c.fail("there is no segment %q: no key %s", segment, key)
	case isNull(value):
		return nil, c.fail("the value of %s is no segment descriptor, but null", key)
	}
	d, err := parseSigned(key, value, segment, c.probe.Security)
	if err != nil {
		return nil, status.Errorf(status.Of(err, status.Metadata), "metadata store %s: the value of %s: %w", c.kv.Name(), key, err)
	}
	return d, nil
}

// HandshakeAddress implements Store. While the store does not answer, it returns the address that it found before.
func (c *central) HandshakeAddress(ctx context.Context, segment string) (string, error) {
	key := c.addressKey(segment)
	value, found, err := c.kv.Get(ctx, key)
	before, known := c.recall(key)
	switch {
	case err != nil && known:
		return before.hostPort(), nil
	case err != nil:
		return "", err
	case !found:
		c.forget(key)
		return "", c.fail("there is no engine %q: no key %s", segment, key)
	}
	meta, err := parseSignedMeta(key, value, segment, c.probe.Security)
	if err != nil {
		return "", c.fail("the value of %s is no address of an engine, or of none that may be asked: %w", key, err)
	}
	if known && meta.isRefusedFor(before) && !c.isGone(ctx, segment, before) {
		c.log.Warn("an address in the metadata store is stale, or conflicts with one that was found before, which is kept",
			zap.String("key", key), zap.ByteString("found", value), zap.String("kept", before.hostPort()))
		return before.hostPort(), nil
	}
	c.remember(key, meta)
	return meta.hostPort(), nil
}

// isRefusedFor reports whether an address is older than one that was found before, or another one of the same version.
func (m rpcMeta) isRefusedFor(before rpcMeta) bool {
	return m.Version != 0 && before.Version != 0 &&
		(m.Version < before.Version || m.Version == before.Version && !m.sameAddress(before))
}

// isGone reports whether a segment's owner has left an address: no engine answers there, or one of another name. A successor
// at another address may have a clock that is behind.
func (c *central) isGone(ctx context.Context, segment string, at rpcMeta) bool {
	answered, err := c.probe.identify(ctx, at.hostPort())
	if err != nil {
		return isNobody(err)
	}
	return answered != "" && answered != strings.TrimPrefix(segment, "ram/")
}

// recall returns the address that was found under a key before.
func (c *central) recall(key string) (at rpcMeta, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, known = c.known[key]
	return at, known
}

func (c *central) remember(key string, at rpcMeta) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= maxKnown {
		clear(c.known)
	}
	c.known[key] = at
}

func (c *central) forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, key)
}

// Withdraw implements Store. It removes the address after the descriptor, so that the name stays taken until the end.
func (c *central) Withdraw(ctx context.Context) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	c.self.withdrawn = true
	if c.self.entry == nil {
		return nil
	}
	err := c.withdrawDescriptor(ctx)
	if err == nil {
		err = c.kv.Remove(ctx, c.addressKey(c.self.name), c.self.entry)
	}
	if err == nil {
		c.self.entry, c.self.claimed = nil, false
	}
	return err
}

func (c *central) withdrawDescriptor(ctx context.Context) error {
	key, value := c.segmentKey(c.self.name), c.self.descriptor
	if c.self.unsure {
		// Either descriptor is this engine's while the name is.
		entry, _, err := c.kv.Get(ctx, c.addressKey(c.self.name))
		if err != nil || !bytes.Equal(entry, c.self.entry) {
			return err
		}
		if value, _, err = c.kv.Get(ctx, key); err != nil {
			return err
		}
	}
	if value == nil {
		return nil
	}
	return c.kv.Remove(ctx, key, value)
}

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

func (m rpcMeta) hostPort() string { return net.JoinHostPort(m.Host, strconv.Itoa(m.Port)) }

// metaOf is what rpc_meta says of an engine at "host:port".
func metaOf(hostPort string) (rpcMeta, error) {
	at, err := address.Parse(hostPort, 0)
	return rpcMeta{Host: at.Host, Port: at.Port}, err
}

// parseMeta reads the value of an rpc_meta key. Mooncake may have put an IPv6 address in brackets.
func parseMeta(value []byte) (rpcMeta, error) {
	var m rpcMeta
	if err := json.Unmarshal(value, &m); err != nil {
		return m, jsonError("the value", err)
	}
	var err error
	if m.Host, err = address.BareHost(m.Host); err != nil {
		return m, err
	}
	if m.Port < 1 || m.Port > math.MaxUint16 {
		return m, malformed("rpc_port %d is not a port", m.Port)
	}
	return m, nil
}
