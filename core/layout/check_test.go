package layout

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// small is a layout of 2 layers, K and V in one tensor, 4 heads of 8 elements, NHD, in 5 blocks of 4 tokens.
func small() *Layout {
	return &Layout{
		DType: "bfloat16", ElementSize: 2, Blocks: 5, BlockTokens: 4, Layers: 2, KV: 2, Dim: 8, HeadsOf: 4, Heads: Span{0, 4},
		Tensors: []Tensor{{
			Addresses: []uint64{0x1000, 0x3000}, KV: Span{0, 2}, Dims: Span{0, 8},
			Strides: Strides{KV: 5 * 4 * 64, Block: 4 * 64, Token: 64, Head: 16, Dim: 2},
		}},
	}
}

func TestLayoutsWithAFaultAreRefusedAndTheErrorSaysWhich(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(*Layout)
		says  string
	}{
		"no element size":     {func(l *Layout) { l.ElementSize = 0 }, "element size is 0"},
		"huge elements":       {func(l *Layout) { l.ElementSize = 1 << 40 }, "element size is 1099511627776"},
		"no blocks":           {func(l *Layout) { l.Blocks = 0 }, "number of blocks is 0"},
		"absurd blocks":       {func(l *Layout) { l.Blocks = 1 << 63 }, "number of blocks is 9223372036854775808"},
		"no tokens":           {func(l *Layout) { l.BlockTokens = 0 }, "tokens in a block is 0"},
		"three of K and V":    {func(l *Layout) { l.KV = 3 }, "number of K and V is 3"},
		"no tensors":          {func(l *Layout) { l.Tensors = nil }, "number of tensors is 0"},
		"a long type":         {func(l *Layout) { l.DType = strings.Repeat("x", 33) }, "has 33 bytes"},
		"a type with a space": {func(l *Layout) { l.DType = "a b" }, "other characters"},
		"heads of others":     {func(l *Layout) { l.Heads = Span{2, 3} }, "heads: 3 from 2 on are not within 4"},
		"heads that wrap":     {func(l *Layout) { l.Heads = Span{3, ^uint64(0)} }, "heads: "},
		"no heads":            {func(l *Layout) { l.Heads.Count = 0 }, "heads: 0 from 0 on"},
		"layers of others":    {func(l *Layout) { l.Tensors[0].FirstLayer = 1 }, "tensor 0: layers: 2 from 1 on"},
		"no addresses":        {func(l *Layout) { l.Tensors[0].Addresses = nil }, "tensor 0: layers: 0 from 0 on"},
		"V of MLA":            {func(l *Layout) { l.KV = 1 }, "tensor 0: K and V: 2 from 0 on are not within 1"},
		"elements of others":  {func(l *Layout) { l.Tensors[0].Dims.First = 1 }, "tensor 0: elements of a head: 8 from 1 on"},
		"tokens that overlap": {func(l *Layout) { l.Tensors[0].Strides.Token = 63 }, "token has a stride of 63 bytes"},
		"no stride":           {func(l *Layout) { l.Tensors[0].Strides.Block = 0 }, "axis block has a stride of 0"},
		"an endless stride":   {func(l *Layout) { l.Tensors[0].Strides.Block = 1 << 63 }, "go beyond the end of the address"},
		"an endless extent":   {func(l *Layout) { l.Tensors[0].Strides.Block = 1 << 61 }, "go beyond the end of the address"},
		"a late address":      {func(l *Layout) { l.Tensors[0].Addresses[1] = 1<<63 - 1 }, "layer 1: 2560 bytes at 0x7f"},
		"layers that overlap": {func(l *Layout) { l.Tensors[0].Addresses[1] = 0x1000 + 2559 }, "share bytes"},
		"the same layer twice": {func(l *Layout) {
			l.Tensors = append(l.Tensors, l.Tensors[0])
		}, "tensors 0 and 1 both have layer 0 to 1, K/V 0 to 1, head 0 to 3, dim 0 to 7"},
		"V that overlaps K": {func(l *Layout) {
			l.Tensors = append(l.Tensors, l.Tensors[0])
			l.Tensors[0].KV, l.Tensors[1].KV = Span{0, 1}, Span{1, 1}
		}, "layer 0 of tensor 0 and layer 0 of tensor 1: their elements share bytes"},
		"tensors that cannot be told apart": {func(l *Layout) {
			other := l.Tensors[0]
			l.Tensors[0].KV, other.KV = Span{0, 1}, Span{1, 1}
			other.Strides.Block++
			l.Tensors = append(l.Tensors, other)
		}, "cannot be told apart"},
	} {
		t.Run(name, func(t *testing.T) {
			l := small()
			require.NoError(t, l.Check())
			test.spoil(l)
			require.ErrorContains(t, l.Check(), test.says)
		})
	}
}

func TestInterleavedTensorsAreALayout(t *testing.T) {
	// One block has K and V of all layers: for a token, 8 heads of 24 elements of K, and of 16 elements of V.
	l := &Layout{ElementSize: 1, Blocks: 100, BlockTokens: 16, Layers: 30, KV: 2, Dim: 24, HeadsOf: 8, Heads: Span{0, 8}}
	const perToken = 8 * (24 + 16)
	strides := func(head uint64) Strides {
		return Strides{Block: 30 * 16 * perToken, Token: perToken, Head: head, Dim: 1}
	}
	k := Tensor{KV: Span{0, 1}, Dims: Span{0, 24}, Strides: strides(24)}
	v := Tensor{KV: Span{1, 1}, Dims: Span{0, 16}, Strides: strides(16)}
	for layer := range uint64(30) {
		k.Addresses = append(k.Addresses, layer*16*perToken)
		v.Addresses = append(v.Addresses, layer*16*perToken+8*24)
	}
	l.Tensors = []Tensor{v, k}
	require.NoError(t, l.Check())
	l.Tensors[0].Addresses[17]--
	require.ErrorContains(t, l.Check(), "layer 17 of tensor 1 and layer 17 of tensor 0")
}

func TestTheComparisonOfInterleavedTensorsEnds(t *testing.T) {
	l := &Layout{
		ElementSize: 1, Blocks: 1 << 20, BlockTokens: 1, Layers: 4000, KV: 1, Dim: 1, HeadsOf: 1, Heads: Span{0, 1},
	}
	tensor := Tensor{KV: Span{0, 1}, Dims: Span{0, 1}, Strides: Strides{Block: 4000}}
	for layer := range uint64(4000) {
		tensor.Addresses = append(tensor.Addresses, layer)
	}
	l.Tensors = []Tensor{tensor}
	require.ErrorIs(t, l.Check(), errTooMany)
	l.Tensors[0].Addresses = l.Tensors[0].Addresses[:500] // more than any model has within its blocks
	require.NoError(t, l.Check())
}

func TestLayoutsThatPassTheCheckHaveEachByteOnce(t *testing.T) {
	passed := 0
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 5))
		l := &Layout{
			ElementSize: upTo(r, 2), Blocks: upTo(r, 3), BlockTokens: upTo(r, 3),
			Layers: 2, KV: 2, Dim: 2, HeadsOf: 2, Heads: Span{0, upTo(r, 2)},
		}
		stride := func() uint64 { return pick[uint64](r, 1, 2, 4, 6, 8, 12, 13, 24) }
		strides := Strides{stride(), stride(), stride(), stride(), stride()}
		for kv := range uint64(2) {
			l.Tensors = append(l.Tensors, Tensor{
				KV: Span{kv, 1}, Dims: Span{0, upTo(r, 2)}, Addresses: []uint64{r.Uint64N(40), r.Uint64N(40)}, Strides: strides,
			})
		}
		if l.Check() != nil {
			continue
		}
		passed++
		seen := map[uint64]bool{}
		for _, ts := range l.Tensors {
			eachOffset(l, &ts, func(offset uint64) {
				for _, address := range ts.Addresses {
					for i := range l.ElementSize {
						require.False(t, seen[address+offset+i], "%+v", l)
						seen[address+offset+i] = true
					}
				}
			})
		}
	}
	require.Greater(t, passed, 50)
}

func eachOffset(l *Layout, t *Tensor, f func(uint64)) {
	for block := range l.Blocks {
		for token := range l.BlockTokens {
			for head := range l.Heads.Count {
				for dim := range t.Dims.Count {
					f(block*t.Strides.Block + token*t.Strides.Token + head*t.Strides.Head + dim*t.Strides.Dim)
				}
			}
		}
	}
}

func TestRangesAreTheMemoryOfALayout(t *testing.T) {
	require.Equal(t, []Range{{0x1000, 2560}, {0x3000, 2560}}, small().Ranges())
}

func TestALayoutIsTheSameAfterItsWayAsText(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 6))
		m := randomModel(r)
		l := randomProcess(r, m, Span{0, m.layers}, Span{0, m.heads}, 10).Layout
		l.DType = pick(r, "", "bfloat16", "float8_e4m3fn")
		read, err := Parse(l.JSON())
		require.NoError(t, err)
		require.Equal(t, l, read)
	}
}

func TestTheTextOfALayoutIsThatOfTheDocumentation(t *testing.T) {
	require.JSONEq(t, `{"kvferry_layout": 1, "dtype": "bfloat16", "element_size": 2, "blocks": 5, "block_tokens": 4,
		"layers": 2, "kv": 2, "dim": 8, "heads": [0, 4, 4], "tensors": [{"layer": 0, "addresses": [4096, 12288], "kv": [0, 2],
		"dims": [0, 8], "strides": [1280, 256, 64, 16, 2]}]}`, string(small().JSON()))
}

func TestTextThatIsNoLayoutIsRefused(t *testing.T) {
	good := string(small().JSON())
	for name, test := range map[string]struct{ text, says string }{
		"nothing":            {"", "not valid JSON"},
		"a list":             {"[]", "not valid JSON"},
		"half of it":         {good[:len(good)/2], "not valid JSON"},
		"two":                {good + good, "more than a layout"},
		"another version":    {strings.Replace(good, `"kvferry_layout":1`, `"kvferry_layout":2`, 1), "version 2, where"},
		"an unknown field":   {strings.Replace(good, `"blocks"`, `"bricks"`, 1), "bricks"},
		"a negative number":  {strings.Replace(good, `"blocks":5`, `"blocks":-5`, 1), "blocks"},
		"a fraction":         {strings.Replace(good, `"blocks":5`, `"blocks":5.5`, 1), "blocks"},
		"a number too large": {strings.Replace(good, `"blocks":5`, `"blocks":18446744073709551616`, 1), "blocks"},
		"two heads numbers":  {strings.Replace(good, `"heads":[0,4,4]`, `"heads":[0,4]`, 1), "heads has 2 numbers"},
		"many strides":       {strings.Replace(good, `"strides":[`, `"strides":[0,`, 1), "2, 2 and 6 numbers"},
		"no strides":         {strings.Replace(good, `"strides":[1280,256,64,16,2]`, `"strides":null`, 1), "2, 2 and 0 n"},
		"too long":           {good + strings.Repeat(" ", MaxText), "too long"},
		"a fault":            {strings.Replace(good, `"blocks":5`, `"blocks":0`, 1), "number of blocks is 0"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(test.text))
			require.ErrorContains(t, err, test.says)
		})
	}
}

func TestTheLargestLayoutFitsIntoItsText(t *testing.T) {
	l := &Layout{
		ElementSize: 1, Blocks: 1, BlockTokens: 1, Layers: MaxLayers, KV: 1, Dim: MaxTensors, HeadsOf: 1, Heads: Span{0, 1},
	}
	for i := range uint64(MaxTensors) {
		t := Tensor{KV: Span{0, 1}, Dims: Span{i, 1}, Strides: Strides{1 << 62, 1 << 62, 1 << 62, 1 << 62, 1 << 62}}
		for k := range uint64(MaxAddresses / MaxTensors) {
			t.Addresses = append(t.Addresses, 1<<63-2-i*MaxAddresses-k)
		}
		l.Tensors = append(l.Tensors, t)
	}
	require.NoError(t, l.Check())
	require.Less(t, len(l.JSON()), MaxText)
	l.Tensors[0].Addresses = append(l.Tensors[0].Addresses, 7)
	require.ErrorContains(t, l.Check(), fmt.Sprintf("%d are allowed", MaxAddresses))
}

func FuzzParse(f *testing.F) {
	f.Add(small().JSON())
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 7))
		m := randomModel(r)
		f.Add(randomProcess(r, m, Span{0, m.layers}, Span{0, m.heads}, 3).Layout.JSON())
	}
	f.Fuzz(func(t *testing.T, written []byte) {
		l, err := Parse(written)
		if err != nil {
			return
		}
		again, err := Parse(l.JSON())
		require.NoError(t, err)
		require.Equal(t, l.JSON(), again.JSON())
		for _, r := range l.Ranges() {
			require.LessOrEqual(t, r.Address+r.Bytes, uint64(1<<63-1))
		}
		last := Place{Layout: l, Blocks: []uint64{l.Blocks - 1}}
		request := Request{Sources: []Place{last}, Destinations: []Place{last}, Tokens: l.BlockTokens}
		plan, err := request.NewPlan()
		require.NoError(t, err)
		for pattern := range plan.Transfers[0].Patterns() {
			source, destination := pattern.Bounds()
			require.Equal(t, source, destination)
			require.True(t, holds(l, source), "%v", source)
		}
	})
}

// holds reports whether memory is within that of a layout, from its first to its last byte.
func holds(l *Layout, r Range) bool {
	first, end := ^uint64(0), uint64(0)
	for _, has := range l.Ranges() {
		first, end = min(first, has.Address), max(end, has.Address+has.Bytes)
	}
	return first <= r.Address && r.Address+r.Bytes <= end
}

func TestTheTextHasNoMoreThanItNeeds(t *testing.T) {
	l := nhd(20000, 16, Span{0, 8})
	l.Layers, l.DType = 80, "bfloat16"
	for i := range uint64(76) {
		l.Tensors[0].Addresses = append(l.Tensors[0].Addresses, 0x7f0000000000+i<<32)
	}
	require.Less(t, len(l.JSON()), 2000)
	require.True(t, json.Valid(l.JSON()))
	require.False(t, bytes.ContainsAny(l.JSON(), " \n"))
}
