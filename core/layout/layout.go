// Package layout says where the elements of a KV cache lie in memory, and what has to move from one such layout to
// another.
//
//  1. A Layout names the model's axes (layer, K or V, head, dim) and how a process holds its part of them: in blocks
//     of tokens, in one or several tensors. It travels as JSON (json.go), and is checked before anything is computed
//     from it (check.go).
//  2. New compares layouts of the source's and the destination's processes: which box of coordinates moves from which
//     tensor to which (box.go), and which tokens lie next to each other on both sides (tokens.go).
//  3. The Plan has a Transfer for each pair of processes: strided patterns, merged as far as both layouts allow
//     (pattern.go).
//  4. Who executes a transfer sends its patterns, or the runs that they consist of (runs.go).
package layout

import "fmt"

// Layout is where one process holds a KV cache, or its part of one. A cache has elements at the coordinates layer,
// KV, head, dim and token. The tokens are in blocks of BlockTokens.
type Layout struct {
	DType       string // the name of the elements' type; "" if it does not matter
	ElementSize uint64 // bytes
	Blocks      uint64
	BlockTokens uint64
	Layers      uint64 // of the model. The process has the layers of its tensors
	KV          uint64 // 2: K at 0 and V at 1. 1: one latent vector for both (MLA)
	Dim         uint64 // elements of a head; of the larger one if K and V differ
	HeadsOf     uint64 // KV heads of the model; 1 if it has none (MLA)
	Heads       Span   // the heads that the process has
	Tensors     []Tensor
}

// Span is the numbers [First, First+Count).
type Span struct{ First, Count uint64 }

// Tensor is memory with one set of strides. It has all blocks, tokens and heads of its layout, some layers, K or V or
// both, and all or some of the elements of a head.
type Tensor struct {
	FirstLayer uint64
	Addresses  []uint64 // of the first element, for each layer from FirstLayer on, in the address space of the owner
	KV         Span
	Dims       Span
	Strides    Strides
}

// Strides are the bytes from one element to the next along each axis. The stride of an axis with one element does not
// matter.
type Strides struct{ KV, Block, Token, Head, Dim uint64 }

// Range is memory in the address space of a layout's owner.
type Range struct{ Address, Bytes uint64 }

// Ranges are the memory that the layout lies in, one range for each address. It may have gaps, which are not the
// layout's.
func (l *Layout) Ranges() []Range {
	var ranges []Range
	for i := range l.Tensors {
		t := &l.Tensors[i]
		axes := l.axes(t)
		for _, address := range t.Addresses {
			ranges = append(ranges, Range{address, uint64(extent(axes, l.ElementSize))})
		}
	}
	return ranges
}

// layers are the layers that the tensor has.
func (t *Tensor) layers() Span { return Span{t.FirstLayer, uint64(len(t.Addresses))} }

func (s Span) end() uint64 { return s.First + s.Count }

func (s Span) String() string {
	if s.Count == 1 {
		return fmt.Sprint(s.First)
	}
	return fmt.Sprintf("%d to %d", s.First, s.end()-1)
}

// common are the numbers that are in both spans.
func (s Span) common(other Span) Span {
	first, end := max(s.First, other.First), min(s.end(), other.end())
	if first >= end {
		return Span{}
	}
	return Span{first, end - first}
}
