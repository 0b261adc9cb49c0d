package client

import (
	"sync/atomic"

	"kvferry/core"
)

// counters are the figures of a peer.
type counters struct{ bytesOut, bytesIn, errors atomic.Uint64 }

// count adds a settled piece.
func (c *counters) count(h *piece) {
	if h.op == core.Write {
		c.bytesOut.Add(h.length)
	} else {
		c.bytesIn.Add(h.length)
	}
}

// settled is how many bytes were moved.
func (c *counters) settled() uint64 { return c.bytesOut.Load() + c.bytesIn.Load() }
