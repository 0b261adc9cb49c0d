package metadata

import (
	"context"
	"strings"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// How an engine finds others in a central store.

// maxKnown bounds the addresses that are remembered.
const maxKnown = 1 << 16

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
