package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"net"

	"kvferry/core/metadata/kv"
	"kvferry/core/security"
	"kvferry/core/status"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// How an engine gets into a central store: steps 1 to 3 of central.

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

// generation is that of the secrets or certificates that descriptors are signed with.
func (c *central) generation() uint64 {
	if c.probe.Security.Mode() == security.Off {
		return 0
	}
	return c.probe.Security.Generation()
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
