package driver_test

import (
	"testing"

	"kvferry/core"
	"kvferry/core/metrics"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// The statistics count what was moved, and the jobs of the device that the bytes go to, by the way that they went.
func TestOwnSegmentCopiesAreCounted(t *testing.T) {
	const length = mib
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		n := newNode(t, small, simtest.Runtime(t))
		local, remote := n.on(apps[0], length), n.on(apps[1], length)
		gone := n.on(apps[1], 4096)
		apps[1].Free(gone.addr)
		spans := aligned(length, 4096, 300, 170*kib)
		for op := range ways {
			before := n.counted(t)
			n.own(op, local, remote, spans...)
			b := n.submit(requests(op, local, core.LocalSegment, gone, span{0, 4096})...)
			n.wait(b)
			require.Error(t, b.Err())
			after := n.counted(t)

			require.Equal(t, sum(spans), after.moved[op].All()-before.moved[op].All())
			require.EqualValues(t, len(spans), after.moved[op].Requests-before.moved[op].Requests)
			require.EqualValues(t, 1, after.failures-before.failures)
			to, _ := ways[op](local, remote)
			direct, in := to.on.location+" direct", to.on.location+" in"
			if p.apart {
				direct, in = in, direct
			}
			require.Equal(t, sum(spans), after.staging[direct].Bytes-before.staging[direct].Bytes)
			require.Zero(t, after.staging[in].Bytes)
		}
		failed := uint64(0)
		for _, s := range n.counted(t).staging {
			failed += s.Failed
		}
		require.EqualValues(t, 2, failed)
		simtest.ResetCounters(t) // the use of memory that was freed is intended
	})
}

// counted is what the statistics of an engine say of its own segment.
type counted struct {
	moved    map[core.Opcode]*metrics.Moved
	failures uint64
	staging  map[string]metrics.Staging // by device and direction
}

func (n *node) counted(t *testing.T) counted {
	t.Helper()
	s := n.Stats()
	c := counted{moved: map[core.Opcode]*metrics.Moved{core.Read: {}, core.Write: {}}, staging: map[string]metrics.Staging{}}
	for _, d := range s.Staging {
		c.staging[d.Device+" "+d.Direction] = d
	}
	for _, p := range s.Initiator {
		if p.Peer == "local" {
			c.moved = map[core.Opcode]*metrics.Moved{core.Read: &p.Read, core.Write: &p.Write}
			for _, count := range p.Failures {
				c.failures += count
			}
		}
	}
	return c
}
