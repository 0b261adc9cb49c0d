package tcp

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// model is what the caches of both sides have in common.
type model struct{ element, layers, kv, heads, dim uint64 }

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func randomModel(r *rand.Rand) model {
	m := model{pick[uint64](r, 1, 2, 2, 3, 4), 1 + r.Uint64N(4), 2, pick[uint64](r, 1, 2, 4, 8), pick[uint64](r, 1, 8, 64, 128)}
	if r.IntN(4) == 0 {
		m.kv, m.heads, m.dim = 1, 1, 576 // MLA
	}
	return m
}

// cache is a process's part of a cache in its memory.
type cache struct {
	layout.Place
	memory []byte
}

// randomCache makes a cache with some heads, of random form: the axes in any order, with gaps, in one tensor or in one for each
// layer or for each of K and V. It has room for so many tokens.
func randomCache(t *testing.T, r *rand.Rand, m model, heads layout.Span, tokens uint64) *cache {
	l := &layout.Layout{
		ElementSize: m.element, Layers: m.layers, KV: m.kv, Dim: m.dim, HeadsOf: m.heads, Heads: heads,
		BlockTokens: pick[uint64](r, 1, 4, 16, 128),
	}
	need := (tokens + l.BlockTokens - 1) / l.BlockTokens
	l.Blocks = need + r.Uint64N(4)
	var size uint64
	parts := []layout.Span{{Count: m.kv}}
	if m.kv == 2 && r.IntN(2) == 0 {
		parts = []layout.Span{{First: 0, Count: 1}, {First: 1, Count: 1}}
	}
	for _, span := range parts {
		tensor := layout.Tensor{KV: span, Dims: layout.Span{Count: m.dim}}
		axes := []struct {
			count  uint64
			stride *uint64
		}{
			{m.dim, &tensor.Strides.Dim}, {heads.Count, &tensor.Strides.Head}, {l.BlockTokens, &tensor.Strides.Token},
			{span.Count, &tensor.Strides.KV}, {l.Blocks, &tensor.Strides.Block},
		}
		switch r.IntN(4) {
		case 0:
			axes[1], axes[2] = axes[2], axes[1]
		case 1:
			r.Shuffle(len(axes), func(i, j int) { axes[i], axes[j] = axes[j], axes[i] })
		}
		extent := m.element
		for _, a := range axes {
			*a.stride = extent + pick[uint64](r, 0, 0, 0, 5)
			extent += *a.stride * (a.count - 1)
		}
		for range m.layers {
			size += r.Uint64N(200)
			tensor.Addresses = append(tensor.Addresses, size)
			size += extent
		}
		l.Tensors = append(l.Tensors, tensor)
	}
	c := &cache{memory: tcptest.Mapped(t, int(size+100))}
	for i := range l.Tensors {
		for j := range l.Tensors[i].Addresses {
			l.Tensors[i].Addresses[j] += uint64(hostmem.AddressOf(c.memory))
		}
	}
	for i := range c.memory {
		c.memory[i] = byte(r.Uint32())
	}
	c.Layout = l
	for _, block := range r.Perm(int(l.Blocks))[:need] {
		c.Blocks = append(c.Blocks, uint64(block))
	}
	require.NoError(t, l.Check())
	return c
}

// register registers the memory of a cache: as one region, in one for each layer, or in pieces that cut through tensors.
func (c *cache) register(t *testing.T, r *rand.Rand, e *core.Engine) {
	cuts := []int{0, len(c.memory)}
	switch r.IntN(3) {
	case 0:
		for _, at := range c.Layout.Ranges() {
			cuts = append(cuts, int(at.Address-uint64(hostmem.AddressOf(c.memory))))
		}
	case 1:
		runs := c.Layout.Tensors[0].Strides.Block
		cuts = append(cuts, int(min(runs, uint64(len(c.memory)))))
	}
	slices.Sort(cuts)
	for i, at := range cuts[1:] {
		if at > cuts[i] {
			require.NoError(t, e.Register(hostmem.AddressOf(c.memory)+uintptr(cuts[i]), uint64(at-cuts[i]), "cpu:0", true))
		}
	}
}

// apply copies the runs of a transfer within copies of both memories, and returns the destination's.
func apply(transfer *layout.Transfer, source, destination *cache) []byte {
	after := slices.Clone(destination.memory)
	from, to := uint64(hostmem.AddressOf(source.memory)), uint64(hostmem.AddressOf(destination.memory))
	runs := transfer.Each()
	portion := make([]layout.Run, 100)
	for n := runs.Next(portion); n > 0; n = runs.Next(portion) {
		for _, run := range portion[:n] {
			copy(after[run.Destination-to:][:run.Bytes], source.memory[run.Source-from:])
		}
	}
	return after
}

// isWhole reports whether each run lies in one region.
func isWhole(transfer *layout.Transfer, e *core.Engine, remote func(layout.Run) uint64, op core.Opcode) bool {
	runs := transfer.Each()
	portion := make([]layout.Run, 100)
	for n := runs.Next(portion); n > 0; n = runs.Next(portion) {
		for _, run := range portion[:n] {
			region, err := e.Memory().PinRemote(remote(run), run.Bytes, op)
			if err != nil {
				return false
			}
			region.Unpin()
		}
	}
	return true
}

// TestTransfersOfPlansMoveEachByteAndTouchNoOther moves random caches to random others, in both directions, over TCP and on one
// host, to engines that take strided requests and to others, within a process, and from and to devices.
func TestTransfersOfPlansMoveEachByteAndTouchNoOther(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*core.Config)
		own    bool
		few    bool // each run has a connection of its own
	}{
		"TCP":               {change: func(*core.Config) {}},
		"one host":          {change: func(c *core.Config) { c.SameHost = true }},
		"version 1":         {change: func(c *core.Config) { c.ForceProtoV1 = true }, few: true},
		"a connection each": {change: func(c *core.Config) { c.ConnectionPool = false }, few: true},
		"one lane":          {change: func(c *core.Config) { c.LanesPerPeer = 1 }},
		"itself":            {change: func(*core.Config) {}, own: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(12) {
				r := rand.New(rand.NewPCG(seed, 3))
				m := randomModel(r)
				tokens := 1 + r.Uint64N(200)
				if test.few {
					tokens = 1 + r.Uint64N(3)
				}
				half := layout.Span{First: m.heads / 2, Count: (m.heads + 1) / 2}
				if half.First+half.Count > m.heads {
					half.First--
				}
				source := randomCache(t, r, m, layout.Span{Count: m.heads}, tokens)
				destination := randomCache(t, r, m, pick(r, half, layout.Span{Count: m.heads}), tokens)
				request := layout.Request{Sources: []layout.Place{source.Place}, Destinations: []layout.Place{destination.Place}, Tokens: tokens}
				plan, err := request.NewPlan()
				require.NoError(t, err)
				transfer := plan.Transfers[0]
				if test.few && transfer.Runs > 500 {
					continue
				}
				op := core.Opcode(r.IntN(2))
				near, far := destination, source
				remote := func(run layout.Run) uint64 { return run.Source }
				if op == core.Write {
					near, far = far, near
					remote = func(run layout.Run) uint64 { return run.Destination }
				}
				target, e := newEngine(t, test.change), newEngine(t, test.change)
				id := core.LocalSegment
				if test.own {
					target = e
				} else {
					id = tcptest.OpenSegment(t, e, target.Name())
				}
				far.register(t, r, target)
				if r.IntN(3) > 0 {
					near.register(t, r, e)
				}
				want, kept := apply(transfer, source, destination), slices.Clone(source.memory)
				b, err := e.SubmitPlanned(core.Planned{Opcode: op, Target: id, Transfer: transfer}, 0)
				require.NoError(t, err)
				tcptest.Wait(t, b)
				if !isWhole(transfer, target, remote, op) {
					require.ErrorContains(t, b.Err(), "rejected", "seed %d", seed)
					continue
				}
				require.NoError(t, b.Err(), "seed %d", seed)
				require.True(t, bytes.Equal(want, destination.memory), "seed %d", seed)
				require.True(t, bytes.Equal(kept, source.memory), "seed %d", seed)
				require.EqualValues(t, core.Summary{Tasks: 1, Completed: 1, Bytes: transfer.Bytes}, b.Summary())
				require.NoError(t, e.FreeBatch(b))
				require.NoError(t, e.Close())
				require.NoError(t, target.Close())
			}
		})
	}
}
