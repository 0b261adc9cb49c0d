package layout

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// hnd and nhd are layouts as vLLM has them: [2, blocks, heads, tokens, dim] and [2, blocks, tokens, heads, dim], one
// tensor for each layer, at regular addresses.
func nhd(blocks, tokens uint64, heads Span) *Layout {
	return vllm(blocks, tokens, heads, func(s *Strides) { s.Head, s.Token = 256, heads.Count*256 })
}

func hnd(blocks, tokens uint64, heads Span) *Layout {
	return vllm(blocks, tokens, heads, func(s *Strides) { s.Token, s.Head = 256, tokens*256 })
}

func vllm(blocks, tokens uint64, heads Span, order func(*Strides)) *Layout {
	block := tokens * heads.Count * 256
	t := Tensor{KV: Span{0, 2}, Dims: Span{0, 128}, Strides: Strides{KV: blocks * block, Block: block, Dim: 2}}
	order(&t.Strides)
	for i := range uint64(4) {
		t.Addresses = append(t.Addresses, 1<<32+i*2*blocks*block)
	}
	return &Layout{
		ElementSize: 2, Blocks: blocks, BlockTokens: tokens, Layers: 4, KV: 2, Dim: 128, HeadsOf: 8, Heads: heads,
		Tensors: []Tensor{t},
	}
}

func numbers(first, count uint64) (all []uint64) {
	for i := range count {
		all = append(all, first+i)
	}
	return all
}

// only are the patterns of a plan with one source and one destination.
func only(t *testing.T, source, destination Place, tokens uint64) []Pattern {
	request := Request{Sources: []Place{source}, Destinations: []Place{destination}, Tokens: tokens, Partial: true}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	require.Len(t, plan.Transfers, 1)
	return slices.Collect(plan.Transfers[0].Patterns())
}

func TestRunsAreMergedAsFarAsBothLayoutsAllow(t *testing.T) {
	all, half := Span{0, 8}, Span{4, 4}
	const base = 1 << 32
	for name, test := range map[string]struct {
		source, destination Place
		tokens              uint64
		want                []Pattern
	}{
		"equal layouts and all blocks: one run": {
			Place{Layout: nhd(16, 16, all), Blocks: numbers(0, 16)},
			Place{Layout: nhd(16, 16, all), Blocks: numbers(0, 16)}, 256,
			[]Pattern{{Source: base, Destination: base, Run: 4 * 2 * 256 * 2048}},
		},
		"equal layouts and adjacent blocks: one run for K and V of each layer": {
			Place{Layout: nhd(16, 16, all), Blocks: numbers(3, 5)},
			Place{Layout: nhd(16, 16, all), Blocks: numbers(7, 5)}, 80,
			[]Pattern{pattern(base+3*32768, base+7*32768, 80*2048, Axis{8, 16 * 32768, 16 * 32768})},
		},
		"blocks that are not adjacent: a pattern for each": {
			Place{Layout: nhd(16, 16, all), Blocks: []uint64{9, 4}},
			Place{Layout: nhd(16, 16, all), Blocks: []uint64{2, 6}}, 32,
			[]Pattern{
				pattern(base+9*32768, base+2*32768, 16*2048, Axis{8, 16 * 32768, 16 * 32768}),
				pattern(base+4*32768, base+6*32768, 16*2048, Axis{8, 16 * 32768, 16 * 32768}),
			},
		},
		"blocks of 128 tokens to blocks of 16": {
			Place{Layout: nhd(2, 128, all), Blocks: []uint64{1, 0}},
			Place{Layout: nhd(16, 16, all), Blocks: numbers(0, 16)}, 256,
			[]Pattern{pattern(base+128*2048, base, 128*2048, Axis{8, 256 * 2048, 256 * 2048}, Axis{2, -128 * 2048, 128 * 2048})},
		},
		"half of the heads: a run for each token, and one pattern": {
			Place{Layout: nhd(16, 16, all), Blocks: numbers(0, 16)},
			Place{Layout: nhd(16, 16, half), Blocks: numbers(0, 16)}, 256,
			[]Pattern{pattern(base+4*256, base, 1024, Axis{4 * 2 * 256, 2048, 1024})},
		},
		"heads before tokens to tokens before heads": {
			Place{Layout: hnd(2, 128, all), Blocks: numbers(0, 2)},
			Place{Layout: nhd(16, 16, all), Blocks: numbers(0, 16)}, 256,
			[]Pattern{pattern(base, base, 256, Axis{4 * 2 * 2, 128 * 2048, 128 * 2048}, Axis{128, 256, 2048},
				Axis{8, 128 * 256, 256})},
		},
		"blocks backwards": {
			Place{Layout: hnd(16, 16, all), Blocks: []uint64{9, 8, 7}},
			Place{Layout: hnd(16, 16, half), Blocks: []uint64{2, 3, 4}}, 48,
			[]Pattern{pattern(base+9*32768+4*4096, base+2*16384, 4*4096,
				Axis{8, 16 * 32768, 16 * 16384}, Axis{3, -32768, 16384})},
		},
		"backwards on both sides": {
			Place{Layout: nhd(16, 16, all), Blocks: []uint64{9, 8, 7}},
			Place{Layout: nhd(16, 16, all), Blocks: []uint64{4, 3, 2}}, 48,
			[]Pattern{pattern(base+7*32768, base+2*32768, 48*2048, Axis{8, 16 * 32768, 16 * 32768})},
		},
		"one source block for two destination blocks": {
			Place{Layout: nhd(16, 16, all), Blocks: []uint64{5, 5}},
			Place{Layout: nhd(16, 16, all), Blocks: []uint64{1, 2}}, 32,
			[]Pattern{pattern(base+5*32768, base+32768, 16*2048, Axis{8, 16 * 32768, 16 * 32768}, Axis{2, 0, 32768})},
		},
		"from the middle of a block on": {
			Place{Layout: nhd(16, 16, all), Blocks: numbers(0, 2), First: 12},
			Place{Layout: nhd(16, 16, all), Blocks: numbers(3, 1), First: 1}, 6,
			[]Pattern{
				pattern(base+12*2048, base+49*2048, 4*2048, Axis{8, 16 * 32768, 16 * 32768}),
				pattern(base+16*2048, base+53*2048, 2*2048, Axis{8, 16 * 32768, 16 * 32768}),
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, only(t, test.source, test.destination, test.tokens))
		})
	}
}

func pattern(source, destination, run uint64, axes ...Axis) Pattern {
	p := Pattern{Source: source, Destination: destination, Run: run}
	p.count = copy(p.axes[:], axes)
	return p
}

func TestSlotsOneByOneBecomePatterns(t *testing.T) {
	pool := nhd(256, 1, Span{0, 8})
	slots := Place{Layout: pool, Slots: numbers(17, 64)}
	blocks := Place{Layout: nhd(16, 16, Span{0, 8}), Blocks: numbers(2, 4)}
	require.Equal(t, []Pattern{pattern(1<<32+17*2048, 1<<32+32*2048, 64*2048, Axis{8, 256 * 2048, 256 * 2048})},
		only(t, slots, blocks, 64))
	slots.Slots[63] = 3
	require.Len(t, only(t, slots, blocks, 64), 3, "three blocks, 15 tokens, and the one that lies elsewhere")
}

func TestRandomBlocksAreOnePatternEach(t *testing.T) {
	scattered := func(first uint64) (all []uint64) {
		for i := range uint64(100) {
			all = append(all, (first+i*37)%101) // no number after the one before
		}
		return all
	}
	source := Place{Layout: hnd(101, 16, Span{0, 8}), Blocks: scattered(3)}
	destination := Place{Layout: nhd(101, 16, Span{4, 4}), Blocks: scattered(50)}
	require.Len(t, only(t, source, destination, 1600), 100)
}

func TestNoTokensAreNoTransfers(t *testing.T) {
	here := Place{Layout: nhd(16, 16, Span{0, 8}), Blocks: numbers(0, 1), First: 16}
	request := Request{Sources: []Place{here}, Destinations: []Place{here}}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	require.Empty(t, plan.Transfers)
}
