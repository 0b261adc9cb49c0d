package metadata

import (
	"bytes"
	"context"
	"time"

	"go.uber.org/zap"
)

// How the entries of an engine stay in a central store until they are withdrawn: steps 4 and 5 of central.

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
