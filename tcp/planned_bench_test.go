package tcp

import (
	"fmt"
	"testing"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// headsOf is a cache of 8 layers in NHD with blocks of 16 tokens, and runs of `run` bytes for each token.
func headsOf(b testing.TB, blocks uint64, heads layout.Span, of, run uint64) *cache {
	return headsOn(b, nil, blocks, heads, of, run)
}

// headsOn is headsOf for memory of a device, which is freed with the test; nil for host memory.
func headsOn(b testing.TB, on *device.Host, blocks uint64, heads layout.Span, of, run uint64) *cache {
	const layers, tokens = 8, 16
	block := tokens * heads.Count * run
	tensor := layout.Tensor{
		KV: layout.Span{Count: 2}, Dims: layout.Span{Count: run},
		Strides: layout.Strides{KV: blocks * block, Block: block, Token: heads.Count * run, Head: run, Dim: 1},
	}
	memory := memoryOn(b, on, int(2*layers*blocks*block))
	for layer := range uint64(layers) {
		tensor.Addresses = append(tensor.Addresses, uint64(hostmem.AddressOf(memory))+layer*2*blocks*block)
	}
	for i := range memory {
		memory[i] = byte(i)
	}
	l := &layout.Layout{
		ElementSize: 1, Blocks: blocks, BlockTokens: tokens, Layers: layers, KV: 2, Dim: run, HeadsOf: of, Heads: heads,
		Tensors: []layout.Tensor{tensor},
	}
	require.NoError(b, l.Check())
	c := &cache{memory: memory, on: on}
	b.Cleanup(func() { c.free(b) })
	c.Layout = l
	for i := range blocks {
		c.Blocks = append(c.Blocks, i*7%blocks)
	}
	return c
}

// BenchmarkPlanned moves one of two heads, in runs of different lengths, as one transfer of a plan, and as requests for
// ranges. plain are the same bytes in blocks of 64 KiB.
func BenchmarkPlanned(b *testing.B) {
	const bytes = 16 << 20
	for _, sameHost := range []bool{false, true} {
		for _, run := range []uint64{256, 1024, 2048, 4096, 8192, 16384, 32768} {
			for _, op := range []core.Opcode{core.Write, core.Read} {
				b.Run(fmt.Sprintf("host=%v/run=%d/%v", sameHost, run, op), func(b *testing.B) {
					change := func(c *core.Config) { c.SameHost = sameHost }
					target, e := newEngine(b, change), newEngine(b, change)
					id := tcptest.OpenSegment(b, e, target.Name())
					blocks := bytes / (8 * 2 * 16 * run)
					whole, half := headsOf(b, blocks, layout.Span{Count: 2}, 2, run), headsOf(b, blocks, layout.Span{First: 1, Count: 1}, 2, run)
					source, destination := whole, half
					if op == core.Write {
						source, destination = half, whole
					}
					source, destination = whole, half
					require.NoError(b, e.Register(hostmem.AddressOf(map[core.Opcode][]byte{core.Read: destination.memory, core.Write: source.memory}[op]), uint64(len(map[core.Opcode][]byte{core.Read: destination.memory, core.Write: source.memory}[op])), "cpu:0", true))
					far := map[core.Opcode][]byte{core.Write: destination.memory, core.Read: source.memory}[op]
					near := map[core.Opcode][]byte{core.Read: destination.memory, core.Write: source.memory}[op]
					require.NoError(b, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
					request := layout.Request{Sources: []layout.Place{source.Place}, Destinations: []layout.Place{destination.Place}, Tokens: 16 * blocks}
					plan, err := request.NewPlan()
					require.NoError(b, err)
					transfer := plan.Transfers[0]
					require.EqualValues(b, bytes, transfer.Bytes)
					var plain, ranges []core.Request
					const block = 64 << 10
					for at := 0; at < bytes; at += block {
						from := at * 7 % bytes
						plain = append(plain, tcptest.Ask(op, near[from:from+block], id, far[at:at+block]))
					}
					runs := transfer.Each()
					portion := make([]layout.Run, 1000)
					for n := runs.Next(portion); n > 0; n = runs.Next(portion) {
						for _, r := range portion[:n] {
							local, remote := r.Source, r.Destination
							if op == core.Read {
								local, remote = remote, local
							}
							ranges = append(ranges, core.Request{Opcode: op, Local: uintptr(local), Target: id, Remote: remote, Length: r.Bytes})
						}
					}
					for _, way := range []struct {
						name   string
						submit func() *core.Batch
					}{
						{"planned", func() *core.Batch {
							batch, err := e.SubmitPlanned(core.Planned{Opcode: op, Target: id, Transfer: transfer}, 0)
							require.NoError(b, err)
							return batch
						}},
						{"ranges", func() *core.Batch { return tcptest.Submit(b, e, ranges...) }},
						{"plain", func() *core.Batch { return tcptest.Submit(b, e, plain...) }},
					} {
						b.Run(way.name, func(b *testing.B) {
							warm := way.submit()
							tcptest.Wait(b, warm)
							require.NoError(b, e.FreeBatch(warm))
							b.SetBytes(bytes)
							for b.Loop() {
								batch := way.submit()
								tcptest.Wait(b, batch)
								require.NoError(b, batch.Err())
								require.NoError(b, e.FreeBatch(batch))
							}
						})
					}
				})
			}
		}
	}
}
