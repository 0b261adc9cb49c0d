package client

import (
	"testing"

	"kvferry/core"
	"kvferry/core/layout"
	"kvferry/core/metadata"

	"github.com/stretchr/testify/require"
)

// reordered is a transfer of 8 heads of 256 bytes for the 16 tokens of a block, from HND to NHD: each head has its tokens in a row
// at the source, and each token its heads at the destination.
func reordered(t *testing.T) *layout.Transfer {
	const heads, tokens, dim = 8, 16, 256
	place := func(address, token, head uint64) layout.Place {
		tensor := layout.Tensor{KV: layout.Span{Count: 1}, Dims: layout.Span{Count: dim}, Addresses: []uint64{address}}
		tensor.Strides = layout.Strides{KV: 1, Block: heads * tokens * dim, Token: token, Head: head, Dim: 1}
		return layout.Place{Blocks: []uint64{0}, Layout: &layout.Layout{
			ElementSize: 1, Blocks: 1, BlockTokens: tokens, Layers: 1, KV: 1, Dim: dim, HeadsOf: heads,
			Heads: layout.Span{Count: heads}, Tensors: []layout.Tensor{tensor},
		}}
	}
	request := layout.Request{
		Sources: []layout.Place{place(1<<30, dim, tokens*dim)}, Destinations: []layout.Place{place(2<<30, heads*dim, dim)}, Tokens: tokens,
	}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	return plan.Transfers[0]
}

func TestRunsThatAreLongInTheOrderOfTheSourceAreSentFromWhereTheyAre(t *testing.T) {
	const size = 32 << 10
	on := func(name string) *metadata.Descriptor {
		d := &metadata.Descriptor{Buffers: []metadata.Buffer{{Name: name, Addr: 2 << 30, Length: size}, {Name: name, Addr: 1 << 30, Length: size}}}
		d.BuildIndex()
		return d
	}
	for name, test := range map[string]struct {
		op     core.Opcode
		at     *metadata.Descriptor
		staged bool
		sorted bool
	}{
		"WRITE to a host":              {op: core.Write, at: on("cpu:0"), sorted: true},
		"WRITE to a GPU":               {op: core.Write, at: on("cuda:0"), sorted: true},
		"WRITE to an NPU":              {op: core.Write, at: on("npu:0")},
		"WRITE to what is not shown":   {op: core.Write, at: &metadata.Descriptor{}, sorted: true},
		"READ from an NPU":             {op: core.Read, at: on("npu:0"), sorted: true},
		"WRITE from a device's blocks": {op: core.Write, at: on("cpu:0"), staged: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := &core.Work{Transfer: reordered(t), Tasks: []core.Task{{Request: core.Request{Opcode: test.op}}}, Bytes: size, Staged: test.staged}
			p := newCursor(w).cutFor(destination{runs: mostStridedRun}, size, test.at, false)
			require.EqualValues(t, size, p.length)
			runs := p.strided.memory.Run
			if test.op == core.Read {
				require.EqualValues(t, 256, runs)
				require.EqualValues(t, 256, p.strided.frame.Run)
				require.EqualValues(t, 4096, p.strided.frame.Axes[0].Stride, "the peer has them in a row, head by head")
				return
			}
			require.Equal(t, test.sorted, !p.isPacked())
			if test.sorted {
				require.EqualValues(t, size, runs, "the source has the whole block in a row")
			} else {
				require.EqualValues(t, 256, runs)
			}
		})
	}
}
