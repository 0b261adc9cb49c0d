package tcp

import (
	"fmt"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

const orderedTokens = 384

// ordered is a cache of 4 layers, with orderedTokens in blocks of so many and 8 heads of 256 bytes: before the tokens of a block
// ("HND"), or behind them ("NHD").
func ordered(t testing.TB, order string, blockTokens uint64) *cache {
	const layers, heads, dim = 4, 8, 256
	block := blockTokens * heads * dim
	part := orderedTokens / blockTokens * block
	tensor := layout.Tensor{
		KV: layout.Span{Count: 2}, Dims: layout.Span{Count: dim},
		Strides: layout.Strides{KV: part, Block: block, Token: heads * dim, Head: dim, Dim: 1},
	}
	if order == "HND" {
		tensor.Strides.Token, tensor.Strides.Head = dim, blockTokens*dim
	}
	c := &cache{memory: memoryOn(t, nil, int(2*layers*part))}
	for layer := range uint64(layers) {
		tensor.Addresses = append(tensor.Addresses, uint64(hostmem.AddressOf(c.memory))+layer*2*part)
	}
	c.Layout = &layout.Layout{
		ElementSize: 1, Blocks: orderedTokens / blockTokens, BlockTokens: blockTokens, Layers: layers, KV: 2, Dim: dim, HeadsOf: heads,
		Heads: layout.Span{Count: heads}, Tensors: []layout.Tensor{tensor},
	}
	require.NoError(t, c.Layout.Check())
	for i := range c.Layout.Blocks {
		c.Blocks = append(c.Blocks, i*7%c.Layout.Blocks)
	}
	return c
}

// BenchmarkOrder moves a cache from HND to NHD, in runs of 256 bytes, over loopback. plain are the same bytes in blocks of 64 KiB.
func BenchmarkOrder(b *testing.B) {
	for _, blocks := range []uint64{16, 128} {
		for _, op := range []core.Opcode{core.Write, core.Read} {
			b.Run(fmt.Sprintf("blocks=%d/%v", blocks, op), func(b *testing.B) {
				change := func(c *core.Config) { c.SameHost = false }
				target, e := newEngine(b, change), newEngine(b, change)
				source, destination := ordered(b, "HND", blocks), ordered(b, "NHD", 16)
				near, far := source.memory, destination.memory
				if op == core.Read {
					near, far = far, near
				}
				require.NoError(b, e.Register(hostmem.AddressOf(near), uint64(len(near)), "cpu:0", true))
				require.NoError(b, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
				id := tcptest.OpenSegment(b, e, target.Name())
				request := layout.Request{
					Sources: []layout.Place{source.Place}, Destinations: []layout.Place{destination.Place}, Tokens: orderedTokens,
				}
				plan, err := request.NewPlan()
				require.NoError(b, err)
				b.Run("planned", func(b *testing.B) {
					moveAgain(b, e, len(near), func() *core.Batch {
						batch, err := e.SubmitPlanned(core.Planned{Opcode: op, Target: id, Transfer: plan.Transfers[0]}, 0)
						require.NoError(b, err)
						return batch
					})
				})
				var plain []core.Request
				const block = 64 << 10
				for at := 0; at < len(near); at += block {
					from := at * 7 % len(near)
					plain = append(plain, tcptest.Ask(op, near[from:from+block], id, far[at:at+block]))
				}
				b.Run("plain", func(b *testing.B) {
					moveAgain(b, e, len(near), func() *core.Batch { return tcptest.Submit(b, e, plain...) })
				})
			})
		}
	}
}

// moveAgain measures batches of so many bytes, one at a time.
func moveAgain(b *testing.B, e *core.Engine, bytes int, submit func() *core.Batch) {
	once := func() {
		batch := submit()
		tcptest.Wait(b, batch)
		require.NoError(b, batch.Err())
		require.NoError(b, e.FreeBatch(batch))
	}
	once()
	b.SetBytes(int64(bytes))
	for b.Loop() {
		once()
	}
}
