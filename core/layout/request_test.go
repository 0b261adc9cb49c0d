package layout

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRequestsWithAFaultAreRefusedAndTheErrorSaysWhich(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(*Request)
		says  string
	}{
		"no source":      {func(r *Request) { r.Sources = nil }, "0 sources"},
		"no destination": {func(r *Request) { r.Destinations = nil }, "0 destinations"},
		"too many":       {func(r *Request) { r.Sources = make([]Place, MaxPlaces+1) }, "1025 sources"},
		"another type": {func(r *Request) { to(r).DType = "float16" },
			"destination 0 and source 0 do not match: elements of type float16 and of type bfloat16"},
		"another size":    {func(r *Request) { to(r).ElementSize, to(r).DType = 1, "" }, "element size in bytes 1 and 2"},
		"another model":   {func(r *Request) { to(r).Layers = 3 }, "number of layers 3 and 2"},
		"MLA":             {func(r *Request) { to(r).KV = 1 }, "number of K and V 1 and 2"},
		"other heads":     {func(r *Request) { to(r).HeadsOf = 8 }, "number of heads 8 and 4"},
		"a larger head":   {func(r *Request) { to(r).Dim = 9 }, "elements of a head 9 and 8"},
		"no room":         {func(r *Request) { r.Tokens = 13 }, "source 0: 3 blocks have room for 12 tokens, and 13 from "},
		"late first":      {func(r *Request) { r.Destinations[0].First = ^uint64(0) }, "destination 0: 3 blocks have room"},
		"no such block":   {func(r *Request) { r.Sources[0].Blocks[2] = 5 }, "source 0: block 5, number 2 of the table"},
		"no such slot":    {func(r *Request) { slots(r, 0, 20) }, "source 0: slot 20, number 1 of the table"},
		"both tables":     {func(r *Request) { r.Sources[0].Slots = []uint64{} }, "it has blocks and slots"},
		"one block twice": {func(r *Request) { r.Destinations[0].Blocks[0] = 4 }, "destination 0: number 4 is twice"},
		"a head that nobody has": {func(r *Request) { r.Sources[0].Layout.Heads.Count = 3 },
			"destination 0: no source has layer 0 to 1, K/V 0 to 1, head 3, dim 0 to 7"},
		"a layer that nobody has": {func(r *Request) {
			tensor := &r.Sources[0].Layout.Tensors[0]
			tensor.Addresses = tensor.Addresses[:1]
		}, "destination 0: no source has layer 1, K/V 0 to 1"},
		"nothing in common": {func(r *Request) {
			r.Sources[0].Layout.Heads, to(r).Heads, r.Partial = Span{0, 2}, Span{2, 2}, true
		}, "destination 0: no source has any of its elements"},
	} {
		t.Run(name, func(t *testing.T) {
			request := &Request{
				Sources:      []Place{{Layout: small(), Blocks: []uint64{0, 1, 2}}},
				Destinations: []Place{{Layout: small(), Blocks: []uint64{2, 3, 4}}}, Tokens: 12,
			}
			_, err := request.NewPlan()
			require.NoError(t, err)
			test.spoil(request)
			_, err = request.NewPlan()
			require.ErrorContains(t, err, test.says)
		})
	}
}

func to(r *Request) *Layout { return r.Destinations[0].Layout }

func slots(r *Request, numbers ...uint64) {
	r.Sources[0].Blocks, r.Sources[0].Slots, r.Tokens = nil, numbers, uint64(len(numbers))
}

func TestATypeWithoutANameMatchesAny(t *testing.T) {
	one, other := small(), small()
	other.DType = ""
	here, there := Place{Layout: one, Blocks: []uint64{0}}, Place{Layout: other, Blocks: []uint64{1}}
	require.NotEmpty(t, only(t, here, there, 4))
	require.NotEmpty(t, only(t, there, here, 4))
}

func TestFirstRepeatedFindsSmallAndLargeNumbers(t *testing.T) {
	for _, base := range []uint64{0, 1 << 40} {
		list := []uint64{}
		for i := range uint64(1000) {
			list = append(list, base+i*7919%1009)
		}
		_, found := firstRepeated(list)
		require.False(t, found)
		number, found := firstRepeated(append(list, base+7919%1009))
		require.True(t, found)
		require.Equal(t, base+7919%1009, number)
	}
}

// from says which source each destination gets its heads from, with so many ranks on each side and 4 heads.
func from(t *testing.T, sources, destinations uint64) (used []string) {
	request := Request{Tokens: 16}
	for rank := range sources {
		request.Sources = append(request.Sources, Place{Layout: ofFour(sources, rank), Blocks: []uint64{0}})
	}
	for rank := range destinations {
		request.Destinations = append(request.Destinations, Place{Layout: ofFour(destinations, rank), Blocks: []uint64{0}})
	}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	for _, transfer := range plan.Transfers {
		used = append(used, fmt.Sprintf("%d>%d", transfer.Source, transfer.Destination))
	}
	return used
}

func ofFour(ranks, rank uint64) *Layout {
	l := nhd(1, 16, split(4, ranks, rank))
	l.HeadsOf = 4
	return l
}

func TestEachRankGetsItsHeadsOnceAndReplicasShareTheWork(t *testing.T) {
	require.Equal(t, []string{"0>0", "0>1", "1>2", "1>3"}, from(t, 2, 4))
	require.Equal(t, []string{"0>0", "1>0", "2>1", "3>1"}, from(t, 4, 2))
	require.Equal(t, []string{"0>0", "2>1", "4>2", "6>3"}, from(t, 8, 4), "one of two replicas")
	require.Equal(t, []string{"0>0", "0>1", "1>2", "1>3", "2>4", "2>5", "3>6", "3>7"}, from(t, 4, 8), "two ranks a head")
	require.Equal(t, []string{"0>0", "1>1", "2>2", "3>3", "4>4", "5>5", "6>6", "7>7"}, from(t, 8, 8))
	require.Equal(t, []string{
		"0>0", "0>1", "1>2", "1>3", "2>4", "2>5", "3>6", "3>7", "4>8", "4>9", "5>10", "5>11", "6>12", "6>13", "7>14", "7>15",
	}, from(t, 8, 16), "two of four replicas from each of two")
}

func TestTablesAndTensorsThatAreIrregularBeyondUseAreRefused(t *testing.T) {
	// 300 layers with strides of their own, and 300 pairs of tokens with a step of their own.
	irregular := func() *Layout {
		l := &Layout{
			ElementSize: 1, Blocks: 2, BlockTokens: 1 << 16, Layers: 300, KV: 1, Dim: 1, HeadsOf: 1, Heads: Span{0, 1},
		}
		for i := range uint64(300) {
			l.Tensors = append(l.Tensors, Tensor{
				FirstLayer: i, Addresses: []uint64{i << 32}, KV: Span{0, 1}, Dims: Span{0, 1},
				Strides: Strides{Block: (i + 1) << 17, Token: 1},
			})
		}
		return l
	}
	var table []uint64
	for i := range uint64(300) {
		table = append(table, i*200, i*207+1<<16) // pairs with another step each
	}
	request := Request{
		Sources: []Place{{Layout: irregular(), Slots: table}}, Tokens: 600,
		Destinations: []Place{{Layout: irregular(), Slots: table}},
	}
	_, err := request.NewPlan()
	require.ErrorContains(t, err, "300 kinds of tensors")
}

func TestThePlanOfTensorsInCountlessPiecesIsRefused(t *testing.T) {
	// Each tensor has another part of the heads' elements, and at the destination another layer.
	source := &Layout{
		ElementSize: 1, Blocks: 1, BlockTokens: 1, Layers: 1024, KV: 1, Dim: 2048, HeadsOf: 1, Heads: Span{0, 1},
	}
	destination := *source
	for i := range uint64(1024) {
		address := 1<<40 - i<<24
		source.Tensors = append(source.Tensors, Tensor{
			FirstLayer: i % 2, Addresses: []uint64{address}, KV: Span{0, 1}, Dims: Span{2 * i, 1}, Strides: Strides{Dim: 1},
		})
		destination.Tensors = append(destination.Tensors, Tensor{
			FirstLayer: i, Addresses: []uint64{address}, KV: Span{0, 1}, Dims: Span{0, 2048}, Strides: Strides{Dim: 1},
		})
	}
	require.NoError(t, source.Check())
	require.NoError(t, destination.Check())
	place := func(l *Layout) Place { return Place{Layout: l, Blocks: []uint64{0}} }
	request := Request{Destinations: []Place{place(&destination)}, Tokens: 1, Partial: true}
	for range 200 {
		request.Sources = append(request.Sources, place(source))
	}
	_, err := request.NewPlan()
	require.ErrorContains(t, err, "too many combinations of tensors")
}

func FuzzRequestsOfAnybodyStayWithinTheirLayouts(f *testing.F) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 8))
		m := randomModel(r)
		text := func() []byte { return randomProcess(r, m, Span{0, m.layers}, Span{0, m.heads}, 3).Layout.JSON() }
		f.Add(text(), text(), []byte{0, 1}, []byte{1, 0}, uint64(3), uint64(0), uint8(seed))
	}
	f.Fuzz(func(t *testing.T, source, destination, from, to []byte, tokens, first uint64, how uint8) {
		a, err := Parse(source)
		if err != nil {
			return
		}
		b, err := Parse(destination)
		if err != nil || tokens > 1<<12 {
			return
		}
		request := Request{
			Sources:      []Place{tableOf(a, from, first, how&1 != 0), tableOf(a, from, 0, how&2 != 0)},
			Destinations: []Place{tableOf(b, to, first, how&4 != 0)}, Tokens: tokens, Partial: how&8 != 0,
		}
		plan, err := request.NewPlan()
		if err != nil {
			return
		}
		for _, transfer := range plan.Transfers {
			checked := 0
			for pattern := range transfer.Patterns() {
				source, destination := pattern.Bounds()
				require.True(t, holds(a, source), "%v", source)
				require.True(t, holds(b, destination), "%v", destination)
				if checked++; checked > 1000 {
					break
				}
			}
		}
	})
}

// tableOf is a place with a table of small numbers, of blocks or of slots.
func tableOf(l *Layout, numbers []byte, first uint64, slots bool) Place {
	p := Place{Layout: l, First: first}
	for _, n := range numbers {
		if slots {
			p.Slots = append(p.Slots, uint64(n))
		} else {
			p.Blocks = append(p.Blocks, uint64(n))
		}
	}
	return p
}
