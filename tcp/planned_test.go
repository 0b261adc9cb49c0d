package tcp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"kvferry/core"
	"kvferry/core/device"
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
	on     *device.Host // whose device the memory is on; nil for host memory
}

// memoryOn is memory of a device; host memory for nil.
func memoryOn(t testing.TB, on *device.Host, length int) []byte {
	if on == nil {
		return tcptest.Mapped(t, length)
	}
	memory, err := on.Allocate(0, uint64(length))
	require.NoError(t, err)
	return memory
}

// randomCache makes a cache with some heads, of random form: the axes in any order, with gaps, in one tensor or in one for each
// layer or for each of K and V. It has room for so many tokens, and is on a device, or in host memory for nil.
func randomCache(t *testing.T, r *rand.Rand, m model, heads layout.Span, tokens uint64, on *device.Host) *cache {
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
	c := &cache{memory: memoryOn(t, on, int(size+100)), on: on}
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

// free frees the memory of a cache on a device.
func (c *cache) free(t testing.TB) {
	if c.on != nil {
		require.NoError(t, c.on.Free(c.memory))
	}
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
			require.NoError(t, e.Register(hostmem.AddressOf(c.memory)+uintptr(cuts[i]), uint64(at-cuts[i]), "*", true))
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

// npus are devices that gather, and gpus devices that take batches.
func npus() *device.Host { return device.NewHost("npu", 1) }

func gpus() *device.Host {
	host := device.NewHost("cuda", 1)
	host.Batches = true
	host.Traits = device.Traits{Alignment: 16, Ways: device.WaysOf(device.Single, device.Batch), Default: device.Batch, Asks: true}
	return host
}

// TestTransfersOfPlansMoveEachByteAndTouchNoOther moves random caches to random others, in both directions, over TCP and on one
// host, to engines that take strided requests and to others, within a process, and from and to devices.
func TestTransfersOfPlansMoveEachByteAndTouchNoOther(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*core.Config)
		own    bool
		few    bool // each run has a connection of its own

		near, far func() *device.Host // whose device the memory of the initiator is on, and that of the target; nil for host memory
	}{
		"TCP":               {change: func(*core.Config) {}},
		"one host":          {change: func(c *core.Config) { c.SameHost = true }},
		"version 1":         {change: func(c *core.Config) { c.ForceProtoV1 = true }, few: true},
		"a connection each": {change: func(c *core.Config) { c.ConnectionPool = false }, few: true},
		"one lane":          {change: func(c *core.Config) { c.LanesPerPeer = 1 }},
		"itself":            {change: func(*core.Config) {}, own: true},

		"device to host, TCP":               {change: func(*core.Config) {}, near: npus},
		"device to host, one host":          {change: func(c *core.Config) { c.SameHost = true }, near: npus},
		"device to host, version 1":         {change: func(c *core.Config) { c.ForceProtoV1 = true }, few: true, near: npus},
		"device to host, a connection each": {change: func(c *core.Config) { c.ConnectionPool = false }, few: true, near: npus},
		"host to device, TCP":               {change: func(*core.Config) {}, far: gpus},
		"device to device, TCP":             {change: func(*core.Config) {}, near: npus, far: gpus},
		"device to device, one host":        {change: func(c *core.Config) { c.SameHost = true }, near: gpus, far: npus},
		"device to device, small blocks": {change: func(c *core.Config) {
			c.StagingBlockSize, c.StagingPoolSize = 64<<10, 256<<10
		}, near: npus, far: gpus},
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
				op := core.Opcode(r.IntN(2))
				var mine, theirs *device.Host
				if test.near != nil {
					mine = test.near()
				}
				if test.far != nil {
					theirs = test.far()
				}
				from, to := theirs, mine
				if op == core.Write {
					from, to = to, from
				}
				source := randomCache(t, r, m, layout.Span{Count: m.heads}, tokens, from)
				destination := randomCache(t, r, m, pick(r, half, layout.Span{Count: m.heads}), tokens, to)
				request := layout.Request{Sources: []layout.Place{source.Place}, Destinations: []layout.Place{destination.Place}, Tokens: tokens}
				plan, err := request.NewPlan()
				require.NoError(t, err)
				transfer := plan.Transfers[0]
				if test.few && transfer.Runs > 500 {
					continue
				}
				near, far := destination, source
				remote := func(run layout.Run) uint64 { return run.Source }
				if op == core.Write {
					near, far = far, near
					remote = func(run layout.Run) uint64 { return run.Destination }
				}
				target, e := engineOn(t, theirs, test.change), engineOn(t, mine, test.change)
				id, refused := core.LocalSegment, "rejected"
				if test.own {
					target, refused = e, "beyond the registered"
				} else {
					id = tcptest.OpenSegment(t, e, target.Name())
				}
				far.register(t, r, target)
				if mine != nil {
					require.NoError(t, e.Register(hostmem.AddressOf(near.memory), uint64(len(near.memory)), "*", true))
				} else if r.IntN(3) > 0 {
					near.register(t, r, e)
				}
				want, kept := apply(transfer, source, destination), slices.Clone(source.memory)
				b, err := e.SubmitPlanned(core.Planned{Opcode: op, Target: id, Transfer: transfer}, 0)
				require.NoError(t, err)
				tcptest.Wait(t, b)
				if !isWhole(transfer, target, remote, op) {
					require.ErrorContains(t, b.Err(), refused, "seed %d", seed)
					continue
				}
				require.NoError(t, b.Err(), "seed %d", seed)
				require.True(t, bytes.Equal(want, destination.memory), "seed %d", seed)
				require.True(t, bytes.Equal(kept, source.memory), "seed %d", seed)
				require.EqualValues(t, core.Summary{Tasks: 1, Completed: 1, Bytes: transfer.Bytes}, b.Summary())
				require.NoError(t, e.FreeBatch(b))
				require.NoError(t, e.Close())
				require.NoError(t, target.Close())
				source.free(t)
				destination.free(t)
				for _, on := range []*device.Host{mine, theirs} {
					if on != nil {
						require.Empty(t, on.Leaks())
					}
				}
			}
		})
	}
}

// The peer has whole blocks in a row, and each run is a head of one token on the device.
func TestADevicePacksItsRunsSoThatOthersGetFewRequests(t *testing.T) {
	const (
		run, blocks = 64, 4
		block       = 16 * 2 * run           // bytes
		size        = 8 * 2 * blocks * block // bytes of the memory of headsOf
	)
	both := layout.Span{Count: 2}
	for name, cut := range map[string]int{"in one buffer": 0, "in two buffers": size/4 + block} {
		for _, op := range []core.Opcode{core.Write, core.Read} {
			far := headsOf(t, blocks, both, 2, run)
			on := npus()
			near := headsOn(t, on, blocks, both, 2, run)
			strides := &near.Layout.Tensors[0].Strides
			strides.Token, strides.Head = run, 16*run
			near.Blocks, far.Blocks = []uint64{0, 1, 2, 3}, []uint64{0, 1, 2, 3}
			require.Len(t, far.memory, size)

			buffers := [][]byte{far.memory[:cut], far.memory[cut:]}
			if cut == 0 {
				buffers = buffers[1:]
			}
			p := tcptest.Perform(t, 2, tcptest.ServeWell, buffers...)
			e := engineOn(t, on)
			require.NoError(t, e.Register(hostmem.AddressOf(near.memory), uint64(len(near.memory)), "*", true))
			source, destination := far, near
			if op == core.Write {
				source, destination = near, far
			}
			for i := range source.memory {
				source.memory[i] = byte(i * 7 >> 3)
			}
			request := layout.Request{Sources: []layout.Place{source.Place}, Destinations: []layout.Place{destination.Place}, Tokens: 16 * blocks}
			plan, err := request.NewPlan()
			require.NoError(t, err)
			want := apply(plan.Transfers[0], source, destination)
			id := tcptest.OpenSegment(t, e, p.Name)
			b, err := e.SubmitPlanned(core.Planned{Opcode: op, Target: id, Transfer: plan.Transfers[0]}, 0)
			require.NoError(t, err)
			tcptest.Completes(t, b)
			require.True(t, bytes.Equal(want, destination.memory), name)
			require.EqualValues(t, 8*2*16*2*blocks, plan.Transfers[0].Runs)
			if cut == 0 {
				require.LessOrEqual(t, len(p.Requests()), 8, "%v", op)
			}
		}
	}
}

// The bytes travel in the order of either side. The tables are shuffled, and the heads of a block of 128 tokens are many pages apart.
func TestHeadsBeforeTokensBecomeHeadsBehindTokensAndBack(t *testing.T) {
	for _, sameHost := range []bool{false, true} {
		for _, op := range []core.Opcode{core.Write, core.Read} {
			for _, offered := range []bool{false, true} {
				t.Run(fmt.Sprintf("one host %v, %v, offered %v", sameHost, op, offered), func(t *testing.T) {
					change := func(c *core.Config) { c.SameHost = sameHost }
					reorder(t, op, offered, ordered(t, "HND", 128), ordered(t, "NHD", 16), change)
					reorder(t, op, offered, ordered(t, "NHD", 16), ordered(t, "HND", 128), change)
					reorder(t, op, offered, ordered(t, "HND", 16), ordered(t, "NHD", 16), change)
				})
			}
		}
	}
}

// reorder moves all of a cache to another one, and looks at each byte.
func reorder(t *testing.T, op core.Opcode, offered bool, source, destination *cache, change func(*core.Config)) {
	r := rand.New(rand.NewPCG(uint64(op), 2))
	for i := range source.memory {
		source.memory[i] = byte(i * 7 >> 3)
	}
	near, far := source, destination
	if op == core.Read {
		near, far = far, near
	}
	target, e := newEngine(t, change), newEngine(t, change)
	far.register(t, r, target)
	near.register(t, r, e)
	if offered {
		offer, err := target.Offer(far.Place, both)
		require.NoError(t, err)
		there, err := layout.ParseOffer(offer.Text())
		require.NoError(t, err)
		far.Key = there.Key
	}
	request := layout.Request{Sources: []layout.Place{source.Place}, Destinations: []layout.Place{destination.Place}, Tokens: orderedTokens}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	want := apply(plan.Transfers[0], source, destination)
	b, err := e.SubmitPlanned(core.Planned{
		Opcode: op, Target: tcptest.OpenSegment(t, e, target.Name()), Transfer: plan.Transfers[0],
	}, 0)
	require.NoError(t, err)
	tcptest.Completes(t, b)
	require.NoError(t, e.FreeBatch(b))
	require.True(t, bytes.Equal(want, destination.memory))
}
