package layout

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// Version is that of the JSON form. A reader refuses others.
const Version = 1

// MaxText is how many bytes a layout in JSON may have.
const MaxText = 1 << 20

// text is the JSON form of a layout. It has spans and strides as arrays of numbers.
type text struct {
	Version     int          `json:"kvferry_layout"`
	DType       string       `json:"dtype,omitempty"`
	ElementSize uint64       `json:"element_size"`
	Blocks      uint64       `json:"blocks"`
	BlockTokens uint64       `json:"block_tokens"`
	Layers      uint64       `json:"layers"`
	KV          uint64       `json:"kv"`
	Dim         uint64       `json:"dim"`
	Heads       []uint64     `json:"heads"` // first, count, of how many
	Tensors     []textTensor `json:"tensors"`
}

type textTensor struct {
	FirstLayer uint64   `json:"layer"`
	Addresses  []uint64 `json:"addresses"`
	KV         []uint64 `json:"kv"`      // first, count
	Dims       []uint64 `json:"dims"`    // first, count
	Strides    []uint64 `json:"strides"` // KV, block, token, head, dim
}

// JSON is the layout as text, for any side channel. The layout is without fault: see Check.
func (l *Layout) JSON() []byte {
	t := text{
		Version: Version, DType: l.DType, ElementSize: l.ElementSize, Blocks: l.Blocks, BlockTokens: l.BlockTokens,
		Layers: l.Layers, KV: l.KV, Dim: l.Dim, Heads: []uint64{l.Heads.First, l.Heads.Count, l.HeadsOf},
	}
	for i := range l.Tensors {
		from := &l.Tensors[i]
		s := &from.Strides
		t.Tensors = append(t.Tensors, textTensor{
			FirstLayer: from.FirstLayer, Addresses: from.Addresses, KV: []uint64{from.KV.First, from.KV.Count},
			Dims: []uint64{from.Dims.First, from.Dims.Count}, Strides: []uint64{s.KV, s.Block, s.Token, s.Head, s.Dim},
		})
	}
	written, err := json.Marshal(&t)
	if err != nil {
		panic(err) // numbers and strings: it cannot happen
	}
	return written
}

// Parse reads a layout from JSON, and checks it. The text may come from anybody.
func Parse(written []byte) (*Layout, error) {
	if len(written) > MaxText {
		return nil, fmt.Errorf("a layout of %d bytes is too long: %d are allowed", len(written), MaxText)
	}
	var t text
	decoder := json.NewDecoder(bytes.NewReader(written))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&t); err != nil {
		return nil, fmt.Errorf("the layout is not valid JSON: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("there is more than a layout in the text")
	}
	if t.Version != Version {
		return nil, fmt.Errorf("the layout has version %d, where %d is known", t.Version, Version)
	}
	l := &Layout{
		DType: t.DType, ElementSize: t.ElementSize, Blocks: t.Blocks, BlockTokens: t.BlockTokens,
		Layers: t.Layers, KV: t.KV, Dim: t.Dim,
	}
	if len(t.Heads) != 3 {
		return nil, fmt.Errorf("heads has %d numbers, where 3 are needed", len(t.Heads))
	}
	l.Heads, l.HeadsOf = Span{t.Heads[0], t.Heads[1]}, t.Heads[2]
	for i := range t.Tensors {
		tensor, err := t.Tensors[i].tensor()
		if err != nil {
			return nil, fmt.Errorf("tensor %d: %w", i, err)
		}
		l.Tensors = append(l.Tensors, tensor)
	}
	return l, l.Check()
}

func (t *textTensor) tensor() (Tensor, error) {
	if len(t.KV) != 2 || len(t.Dims) != 2 || len(t.Strides) != 5 {
		return Tensor{}, fmt.Errorf("kv, dims and strides have %d, %d and %d numbers, where 2, 2 and 5 are needed",
			len(t.KV), len(t.Dims), len(t.Strides))
	}
	s := t.Strides
	return Tensor{
		FirstLayer: t.FirstLayer, Addresses: t.Addresses, KV: Span{t.KV[0], t.KV[1]}, Dims: Span{t.Dims[0], t.Dims[1]},
		Strides: Strides{KV: s[0], Block: s[1], Token: s[2], Head: s[3], Dim: s[4]},
	}, nil
}
