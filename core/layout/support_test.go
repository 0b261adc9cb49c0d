package layout

import (
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// model is what all layouts of one cache have in common.
type model struct{ element, layers, kv, heads, dim uint64 }

// process is a process with a part of a cache: its layout, its memory, and where the tokens of a request lie.
type process struct {
	Place
	memory []byte
	base   uint64 // address of memory[0]
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func upTo(r *rand.Rand, most uint64) uint64 { return 1 + r.Uint64N(most) }

// randomModel makes models from one head of one byte to 16 heads, K and V or MLA, small so that memory is.
func randomModel(r *rand.Rand) model {
	m := model{pick[uint64](r, 1, 2, 2, 3, 4, 5, 8, 16), upTo(r, 5), 2, pick[uint64](r, 1, 2, 3, 4, 8, 16), upTo(r, 4)}
	if r.IntN(4) == 0 {
		m.kv, m.heads, m.dim = 1, 1, upTo(r, 9)
	}
	return m
}

// split divides a number among so many ranks: evenly, or where there are more ranks than numbers, with each in
// several ranks.
func split(of, ranks, rank uint64) Span {
	if ranks > of {
		return Span{rank * of / ranks, 1}
	}
	first, end := rank*of/ranks, (rank+1)*of/ranks
	return Span{first, end - first}
}

// randomProcess makes a process that holds these layers and heads in memory of random form, with room for the tokens.
func randomProcess(r *rand.Rand, m model, layers, heads Span, tokens uint64) *process {
	l := &Layout{
		ElementSize: m.element, Layers: m.layers, KV: m.kv, Dim: m.dim, HeadsOf: m.heads, Heads: heads,
		BlockTokens: pick[uint64](r, 1, 2, 3, 4, 8, 16, 16, 32, 128, 256),
	}
	first := r.Uint64N(min(2*l.BlockTokens, 40))
	l.Blocks = (first+tokens+l.BlockTokens-1)/l.BlockTokens + r.Uint64N(4)
	p := &process{Place: Place{Layout: l, First: first}, base: r.Uint64N(1 << 40)}
	p.addTensors(r, m, layers)
	r.Shuffle(len(l.Tensors), func(i, j int) { l.Tensors[i], l.Tensors[j] = l.Tensors[j], l.Tensors[i] })
	if numbers := randomNumbers(r, l.Blocks); r.IntN(3) > 0 {
		p.Blocks = numbers[:(first+tokens+l.BlockTokens-1)/l.BlockTokens]
	} else {
		p.Slots = randomNumbers(r, l.Blocks*l.BlockTokens)[:first+tokens]
	}
	p.memory = append(p.memory, make([]byte, r.IntN(9))...)
	for i := range p.memory {
		p.memory[i] = byte(r.Uint32())
	}
	return p
}

// addTensors holds the cache in one tensor, or in several: by layers, by K and V, by parts of a head.
func (p *process) addTensors(r *rand.Rand, m model, layers Span) {
	for _, someLayers := range randomCuts(r, layers) {
		for _, kv := range randomCuts(r, Span{0, m.kv}) {
			for _, dims := range randomCuts(r, Span{0, m.dim}) {
				p.addTensor(r, someLayers, kv, dims)
			}
		}
	}
}

// randomCuts cuts a span nowhere, everywhere, or somewhere.
func randomCuts(r *rand.Rand, s Span) (parts []Span) {
	chance := pick(r, 0.0, 0.0, 0.3, 1.0)
	for i := range s.Count {
		if i == 0 || r.Float64() < chance {
			parts = append(parts, Span{s.First + i, 0})
		}
		parts[len(parts)-1].Count++
	}
	return parts
}

// addTensor adds memory with all of its axes in a random order, and perhaps gaps. The layers may be an axis of it,
// and K and V may be two tensors in it.
func (p *process) addTensor(r *rand.Rand, layers, kv, dims Span) {
	l := p.Layout
	var layerStride uint64
	t := Tensor{FirstLayer: layers.First, KV: kv, Dims: dims}
	axes := []struct {
		count  uint64
		stride *uint64
	}{
		{dims.Count, &t.Strides.Dim}, {l.Heads.Count, &t.Strides.Head}, {l.BlockTokens, &t.Strides.Token},
		{kv.Count, &t.Strides.KV}, {l.Blocks, &t.Strides.Block}, {layers.Count, &layerStride},
	}
	switch r.IntN(4) {
	case 0: // NHD, as above
	case 1:
		axes[1], axes[2] = axes[2], axes[1] // HND
	case 2: // the layers within a block
		axes[4], axes[5] = axes[5], axes[4]
	default:
		r.Shuffle(len(axes), func(i, j int) { axes[i], axes[j] = axes[j], axes[i] })
	}
	padding := pick(r, 0, 0, 0, 7)
	size := l.ElementSize
	for _, a := range axes {
		*a.stride = size + uint64(r.IntN(padding+1))
		size += *a.stride * (a.count - 1)
	}
	p.memory = append(p.memory, make([]byte, r.IntN(2)*r.IntN(9))...)
	start := p.base + uint64(len(p.memory))
	p.memory = append(p.memory, make([]byte, size)...)
	for i := range layers.Count {
		t.Addresses = append(t.Addresses, start+i*layerStride)
	}
	if kv.Count == 1 || r.IntN(2) == 0 {
		l.Tensors = append(l.Tensors, t)
		return
	}
	for i := range kv.Count { // views of the same memory
		view := t
		view.KV, view.Addresses = Span{kv.First + i, 1}, nil
		for _, a := range t.Addresses {
			view.Addresses = append(view.Addresses, a+i*t.Strides.KV)
		}
		l.Tensors = append(l.Tensors, view)
	}
}

// randomNumbers are the numbers below n: in order, backwards, at random, or in stretches at random places.
func randomNumbers(r *rand.Rand, n uint64) (numbers []uint64) {
	stretch := pick(r, 1, 1, 2, 5, int(n))
	for first := 0; first < int(n); first += stretch {
		numbers = append(numbers, uint64(first))
	}
	r.Shuffle(len(numbers), func(i, j int) { numbers[i], numbers[j] = numbers[j], numbers[i] })
	backwards := r.IntN(3) == 0
	starts := numbers
	numbers = nil
	for _, first := range starts {
		end := min(first+uint64(stretch), n)
		for i := range end - first {
			if backwards {
				numbers = append(numbers, end-1-i)
			} else {
				numbers = append(numbers, first+i)
			}
		}
	}
	return numbers
}

// element is the memory of one element of a token; nil if the process does not have it. It is found as the
// documentation says, without help of the package.
func (p *process) element(layer, kv, head, dim, token uint64) []byte {
	l := p.Layout
	position := p.First + token
	var block, within uint64
	if p.Slots != nil {
		block, within = p.Slots[position]/l.BlockTokens, p.Slots[position]%l.BlockTokens
	} else {
		block, within = p.Blocks[position/l.BlockTokens], position%l.BlockTokens
	}
	if head < l.Heads.First || head >= l.Heads.First+l.Heads.Count {
		return nil
	}
	for _, t := range l.Tensors {
		if layer < t.FirstLayer || layer >= t.FirstLayer+uint64(len(t.Addresses)) ||
			kv < t.KV.First || kv >= t.KV.First+t.KV.Count || dim < t.Dims.First || dim >= t.Dims.First+t.Dims.Count {
			continue
		}
		at := t.Addresses[layer-t.FirstLayer] + (kv-t.KV.First)*t.Strides.KV + (dim-t.Dims.First)*t.Strides.Dim +
			block*t.Strides.Block + within*t.Strides.Token + (head-l.Heads.First)*t.Strides.Head
		return p.memory[at-p.base:][:l.ElementSize]
	}
	return nil
}

// eachElement calls f with all coordinates of the cache for so many tokens.
func (m model) eachElement(tokens uint64, f func(layer, kv, head, dim, token uint64)) {
	for layer := range m.layers {
		for kv := range m.kv {
			for head := range m.heads {
				for dim := range m.dim {
					for token := range tokens {
						f(layer, kv, head, dim, token)
					}
				}
			}
		}
	}
}

var seed = maphash.MakeSeed()

// fill gives each element of the tokens a content that follows from its coordinates, the same in each process that
// has it.
func (p *process) fill(m model, tokens uint64) {
	m.eachElement(tokens, func(layer, kv, head, dim, token uint64) {
		content := maphash.Comparable(seed, [5]uint64{layer, kv, head, dim, token})
		for i, bytes := 0, p.element(layer, kv, head, dim, token); i < len(bytes); i++ {
			bytes[i] = byte(content >> (i % 8 * 8))
		}
	})
}

// move executes a transfer, and checks that no byte of the destination is written twice.
func move(t *testing.T, r *rand.Rand, transfer *Transfer, from, to *process, written []bool) {
	runs := transfer.Each()
	portion := make([]Run, 1+r.IntN(50))
	var count, bytes uint64
	for n := runs.Next(portion); n > 0; n = runs.Next(portion) {
		for _, run := range portion[:n] {
			at := run.Destination - to.base
			copy(to.memory[at:][:run.Bytes], from.memory[run.Source-from.base:][:run.Bytes])
			if marks := written[at:][:run.Bytes]; slices.Contains(marks, true) {
				t.Fatalf("a byte of the run %v is written twice", run)
			} else {
				copy(marks, slices.Repeat([]bool{true}, len(marks)))
			}
			count, bytes = count+1, bytes+run.Bytes
		}
	}
	require.Equal(t, transfer.Runs, count)
	require.Equal(t, transfer.Bytes, bytes)
	require.Zero(t, runs.Next(portion), "it stays at its end")
}
