package core_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"kvferry/core"
	"kvferry/core/layout"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// carryTransfer moves the runs of a work.
func (w *wire) carryTransfer(h *transporttest.Held) {
	op := h.Tasks[h.Head].Opcode
	for pattern := range h.Transfer.Patterns() {
		local, remote := core.Sides(op, &pattern)
		places := slices.Collect(remote.Runs())
		for run := range local.Runs() {
			w.move(&core.Request{Opcode: op, Local: run, Remote: uint64(places[0]), Length: local.Run})
			places = places[1:]
		}
	}
}

// side is memory with a cache of 2 layers of K and V, 4 heads, and the tokens of a request in some of its blocks.
type side struct {
	memory []byte
	place  layout.Place
}

const (
	planTokens = 300
	planMemory = 2 << 20 // bytes: four blocks of 128 tokens of the largest heads
)

// newSide has the heads before the tokens, or behind them. base is the address of the memory.
func newSide(r *rand.Rand, memory []byte, base, tokens, head uint64, hnd bool) side {
	const layers, heads = 2, 4
	block := tokens * heads * head
	blocks := uint64(len(memory)) / (layers * 2 * block)
	t := layout.Tensor{KV: layout.Span{Count: 2}, Dims: layout.Span{Count: head}}
	t.Strides = layout.Strides{KV: blocks * block, Block: block, Token: heads * head, Head: head, Dim: 1}
	if hnd {
		t.Strides.Token, t.Strides.Head = head, tokens*head
	}
	for i := range uint64(layers) {
		t.Addresses = append(t.Addresses, base+i*2*blocks*block)
	}
	l := &layout.Layout{
		ElementSize: 1, Blocks: blocks, BlockTokens: tokens, Layers: layers, KV: 2, Dim: head, HeadsOf: heads,
		Heads: layout.Span{Count: heads}, Tensors: []layout.Tensor{t},
	}
	first := r.Uint64N(tokens)
	s := side{memory, layout.Place{Layout: l, First: first}}
	for _, number := range r.Perm(int(blocks))[:(first+planTokens+tokens-1)/tokens] {
		s.place.Blocks = append(s.place.Blocks, uint64(number))
	}
	return s
}

func transferBetween(t testing.TB, source, destination side) *layout.Transfer {
	t.Helper()
	request := layout.Request{
		Sources: []layout.Place{source.place}, Destinations: []layout.Place{destination.place}, Tokens: planTokens,
	}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	return plan.Transfers[0]
}

// planned is a transfer of a plan between a device and the peer, in a direction.
func (p *stagedPair) planned(op core.Opcode, local, remote side) core.Planned {
	p.t.Helper()
	return plannedTo(p.t, p.segment, op, local, remote)
}

// plannedTo is a transfer of a plan between memory of this process and that of a segment, in a direction.
func plannedTo(t testing.TB, target core.SegmentID, op core.Opcode, local, remote side) core.Planned {
	t.Helper()
	source, destination := local, remote
	if op == core.Read {
		source, destination = remote, local
	}
	return core.Planned{Opcode: op, Target: target, Transfer: transferBetween(t, source, destination)}
}

// moved is what the memory of both sides is after a transfer. base is the address of the remote memory.
func moved(p *core.Planned, local, remote []byte, base uint64) (wantLocal, wantRemote []byte) {
	wantLocal, wantRemote = slices.Clone(local), slices.Clone(remote)
	runs, portion := p.Transfer.Each(), make([]layout.Run, 100)
	for n := runs.Next(portion); n > 0; n = runs.Next(portion) {
		for _, run := range portion[:n] {
			if p.Opcode == core.Write {
				copy(wantRemote[run.Destination-base:][:run.Bytes], local[run.Source-uint64(at(local)):])
			} else {
				copy(wantLocal[run.Destination-uint64(at(local)):][:run.Bytes], remote[run.Source-base:])
			}
		}
	}
	return wantLocal, wantRemote
}

func startPlanned(t *testing.T, transport *transporttest.Transport, configure func(*core.Config)) *stagedPair {
	t.Helper()
	transport.Transfers = true
	return startStaged(t, transport, configure)
}

func TestAPlanWithMemoryOfADeviceIsOneTaskAndMovesEveryByteAndNoOther(t *testing.T) {
	w := &wire{memory: make([]byte, planMemory)}
	var works, runs atomic.Uint64
	p := startPlanned(t, &transporttest.Transport{OnSubmit: func(h *transporttest.Held) {
		if h.Transfer != nil {
			works.Add(1)
			runs.Add(h.Transfer.Runs)
		}
		w.carry(h)
	}}, nil)
	memory := p.memory(1, planMemory)
	r := rand.New(rand.NewPCG(3, 1))
	for _, op := range []core.Opcode{core.Write, core.Read} {
		for _, head := range []uint64{1, 24, 256} {
			for _, tokens := range [][2]uint64{{128, 16}, {3, 128}} {
				for order := range 4 {
					name := fmt.Sprintf("%v, head of %d bytes, blocks of %d, order %d", op, head, tokens, order)
					fill(memory, 1)
					fill(w.memory, 2)
					local := newSide(r, memory, uint64(at(memory)), tokens[0], head, order&1 > 0)
					planned := p.planned(op, local, newSide(r, w.memory, 0, tokens[1], head, order&2 > 0))
					wantLocal, wantRemote := moved(&planned, memory, w.memory, 0)
					works.Store(0)
					runs.Store(0)
					b, err := p.SubmitPlanned(planned, 0)
					require.NoError(t, err, name)
					wait(t, b)
					require.NoError(t, b.Err(), name)
					require.Equal(t, core.Summary{Tasks: 1, Completed: 1, Bytes: planned.Transfer.Bytes}, b.Summary(), name)
					require.NoError(t, p.FreeBatch(b))
					require.Equal(t, wantLocal, memory, name)
					require.Equal(t, wantRemote, w.memory, name)
					require.NotZero(t, works.Load(), name)
					require.LessOrEqual(t, runs.Load(), planned.Transfer.Runs+2*works.Load(), name)
				}
			}
		}
	}
}

func TestAPlanWithMemoryAtSeveralPlacesGoesByRequests(t *testing.T) {
	w := &wire{memory: make([]byte, 1<<20)}
	p := startPlanned(t, &transporttest.Transport{OnSubmit: w.carry}, nil)
	host := pages(t, 128)
	require.NoError(t, p.Register(at(host), 128, "*", true))
	for name, v := range map[string][]byte{"host": host, "another device": p.memory(1, 128)} {
		k := p.memory(0, 128)
		fill(k, 1)
		fill(v, 100)
		fill(w.memory, 50)
		planned := core.Planned{Opcode: core.Write, Target: p.segment, Transfer: twoHeads(t,
			cache(uint64(at(k))-128, uint64(at(v))-128, 2, 4, layout.Span{Count: 4}),
			cache(0, 0x1000, 4, 2, layout.Span{First: 2, Count: 2}))}
		b, err := p.SubmitPlanned(planned, 0)
		require.NoError(t, err)
		wait(t, b)
		require.Equal(t, core.Summary{Tasks: 8, Completed: 8, Bytes: 128}, b.Summary(), name)
		require.Equal(t, k[16:32], w.memory[0x60:0x70], name)
		require.Equal(t, v[112:128], w.memory[0x1010:0x1020], name)
	}
}

func TestAPlannedReadOfWhichAPartFailsLeavesNoForeignBytesOnTheDevice(t *testing.T) {
	p := startPlanned(t, &transporttest.Transport{}, nil)
	memory, remote := p.memory(0, planMemory), make([]byte, planMemory)
	fill(memory, 9)
	want := slices.Clone(memory)
	r := rand.New(rand.NewPCG(3, 3))
	planned := p.planned(core.Read, newSide(r, memory, uint64(at(memory)), 128, 8, true), newSide(r, remote, 0, 16, 8, true))
	b, err := p.SubmitPlanned(planned, 0)
	require.NoError(t, err)
	h := p.arrival()
	lost := errors.New("lost")
	h.Settle(0, h.Bytes-100, nil)
	h.SettleRest(lost)
	wait(t, b)
	require.ErrorIs(t, b.Err(), lost)
	require.Equal(t, want, memory)
}

func TestGivenUpPlansWithMemoryOfADeviceEndAtEveryStep(t *testing.T) {
	for _, op := range []core.Opcode{core.Write, core.Read} {
		for name, giveUp := range map[string]func(p *stagedPair, b *core.Batch, memory []byte){
			"discarded": func(p *stagedPair, b *core.Batch, memory []byte) {
				require.NoError(t, p.DiscardBatch(b))
				require.NoError(t, p.Unregister(at(memory)))
			},
			"unregistered": func(p *stagedPair, b *core.Batch, memory []byte) {
				p.SetGrace(0)
				require.NoError(t, p.Unregister(at(memory)))
				wait(t, b)
				require.Error(t, b.Err())
			},
			"closed": func(p *stagedPair, b *core.Batch, memory []byte) {
				require.NoError(t, p.Close())
				wait(t, b)
				require.ErrorIs(t, b.Err(), core.ErrClosed)
			},
			"lost": func(p *stagedPair, b *core.Batch, memory []byte) {
				require.NoError(t, p.RemoveLocalSegment(p.peer.Name()))
				wait(t, b)
				require.ErrorContains(t, b.Err(), "removed")
			},
		} {
			// More than the pool holds: some of it is with the transport, some waits for a lease.
			p := startPlanned(t, &transporttest.Transport{}, func(c *core.Config) {
				c.StagingBlockSize, c.StagingPoolSize = 128<<10, 256<<10
			})
			memory, remote := p.memory(0, planMemory), make([]byte, planMemory)
			r := rand.New(rand.NewPCG(3, 4))
			planned := p.planned(op, newSide(r, memory, uint64(at(memory)), 128, 256, true), newSide(r, remote, 0, 16, 256, false))
			b, err := p.SubmitPlanned(planned, 0)
			require.NoError(t, err, name)
			require.Eventually(t, func() bool { return len(p.transport.Held()) > 0 }, longWait, 1000)
			want := slices.Clone(memory)
			giveUp(p, b, memory)
			require.Eventually(t, func() bool { return len(p.transport.Held()) == 0 }, longWait, 1000)
			require.Equal(t, want, memory, name)
		}
	}
}
