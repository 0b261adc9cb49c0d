package core_test

import (
	"testing"

	"kvferry/core"
	"kvferry/core/layout"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"

	"github.com/stretchr/testify/require"
)

// cache is a layout of one layer of K and V apart, with the given heads of 4, each 8 bytes: [blocks, tokens, heads,
// bytes].
func cache(k, v uint64, blocks, tokens uint64, heads layout.Span) *layout.Layout {
	l := &layout.Layout{
		ElementSize: 1, Blocks: blocks, BlockTokens: tokens, Layers: 1, KV: 2, Dim: 8, HeadsOf: 4, Heads: heads,
	}
	for kv, address := range []uint64{k, v} {
		l.Tensors = append(l.Tensors, layout.Tensor{
			Addresses: []uint64{address}, KV: layout.Span{First: uint64(kv), Count: 1}, Dims: layout.Span{Count: 8},
			Strides: layout.Strides{Block: tokens * heads.Count * 8, Token: heads.Count * 8, Head: 8, Dim: 1},
		})
	}
	return l
}

// twoHeads is a transfer of 4 tokens of heads 2 and 3, from a source with all heads to a destination with these two.
func twoHeads(t testing.TB, source, destination *layout.Layout) *layout.Transfer {
	t.Helper()
	request := layout.Request{
		Sources:      []layout.Place{{Layout: source, Blocks: []uint64{1}}},
		Destinations: []layout.Place{{Layout: destination, Blocks: []uint64{3, 0}}}, Tokens: 4,
	}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	return plan.Transfers[0]
}

// heads is twoHeads between a process with K at 0x10000 and V at 0x20000, and one with K at 0x50000 and V at 0x60000.
func heads(t testing.TB) *layout.Transfer {
	return twoHeads(t, cache(0x10000, 0x20000, 2, 4, layout.Span{Count: 4}),
		cache(0x50000, 0x60000, 4, 2, layout.Span{First: 2, Count: 2}))
}

// headsSources and headsDestinations are where the runs of heads lie, 16 bytes each.
var (
	headsSources      = []uint64{0x10090, 0x100b0, 0x100d0, 0x100f0, 0x20090, 0x200b0, 0x200d0, 0x200f0}
	headsDestinations = []uint64{0x50060, 0x50070, 0x50000, 0x50010, 0x60060, 0x60070, 0x60000, 0x60010}
)

func TestPlannedRequestsMoveTheRunsOfThePlanInBothDirections(t *testing.T) {
	for _, opcode := range []core.Opcode{core.Read, core.Write} {
		p := startPair(t, nil)
		b, err := p.SubmitPlanned(core.Planned{Opcode: opcode, Target: p.segment, Transfer: heads(t)}, 0)
		require.NoError(t, err)
		var want []core.Request
		for i, source := range headsSources {
			local, remote := source, headsDestinations[i]
			if opcode == core.Read {
				local, remote = remote, local
			}
			want = append(want, core.Request{
				Opcode: opcode, Local: uintptr(local), Target: p.segment, Remote: remote, Length: 16,
			})
		}
		require.ElementsMatch(t, want, requestsOf(p.transport))
		p.transport.SettleAll(nil)
		require.Equal(t, core.Summary{Tasks: 8, Completed: 8, Bytes: 128}, b.Summary())
	}
}

func TestPlannedRequestsInPartsAreAllRequests(t *testing.T) {
	for limit := 1; limit <= 9; limit++ {
		p := startPair(t, nil)
		b, err := p.SubmitPlanned(core.Planned{Opcode: core.Write, Target: p.segment, Transfer: heads(t)}, limit)
		require.NoError(t, err)
		require.Equal(t, core.Summary{Tasks: 8}, b.Summary())
		for done := 0; done < 8; done += limit {
			part := min(limit, 8-done)
			eventually(t, func() bool { return len(requestsOf(p.transport)) == part })
			p.transport.SettleAll(nil)
		}
		wait(t, b)
		require.Equal(t, core.Summary{Tasks: 8, Completed: 8, Bytes: 128}, b.Summary())
		require.NoError(t, p.FreeBatch(b))
	}
}

func TestAFailedPartOfAPlanIsTheLast(t *testing.T) {
	p := startPair(t, nil)
	b, err := p.SubmitPlanned(core.Planned{Opcode: core.Read, Target: p.segment, Transfer: heads(t)}, 3)
	require.NoError(t, err)
	eventually(t, func() bool { return len(requestsOf(p.transport)) == 3 })
	p.transport.SettleAll(core.ErrDiscarded)
	wait(t, b)
	require.ErrorIs(t, b.Err(), core.ErrDiscarded)
	require.Equal(t, core.Summary{Tasks: 8, Failed: 8}, b.Summary())
	require.NoError(t, p.FreeBatch(b))
}

func TestMemoryOfAPlanCannotGoAwayBeforeItsPartIsSubmitted(t *testing.T) {
	p := startPair(t, nil)
	p.SetGrace(0)
	memory := pages(t, 1<<16)
	require.NoError(t, p.Register(at(memory), 1<<16, "*", true))
	v := uint64(at(memory)) // the last part's
	transfer := twoHeads(t, cache(0x10000, v, 2, 4, layout.Span{Count: 4}),
		cache(0x50000, 0x60000, 4, 2, layout.Span{First: 2, Count: 2}))
	b, err := p.SubmitPlanned(core.Planned{Opcode: core.Write, Target: p.segment, Transfer: transfer}, 4)
	require.NoError(t, err)
	eventually(t, func() bool { return len(requestsOf(p.transport)) == 4 })
	require.NoError(t, p.Unregister(at(memory)))
	wait(t, b)
	requireCode(t, status.AddressNotRegistered, b.Err())
	require.NoError(t, p.FreeBatch(b))
}

func TestPlannedRequestsThatCannotBeSubmittedLeaveNoBatch(t *testing.T) {
	p := startPair(t, nil)
	for _, limit := range []int{0, 1} {
		_, err := p.SubmitPlanned(core.Planned{Opcode: 7, Target: p.segment, Transfer: heads(t)}, limit)
		requireCode(t, status.InvalidArgument, err)
		_, err = p.SubmitPlanned(core.Planned{Opcode: core.Read, Target: 99, Transfer: heads(t)}, limit)
		require.Error(t, err)
	}
	require.Zero(t, p.transport.Calls().Submit)
}

func TestATransferInCountlessRangesIsRefusedBeforeItTakesMemory(t *testing.T) {
	p := startPair(t, nil)
	for _, runs := range []uint64{1<<26 + 1, 1 << 31, 1 << 63} {
		planned := core.Planned{Opcode: core.Read, Target: p.segment, Transfer: &layout.Transfer{Runs: runs}}
		_, err := p.SubmitPlanned(planned, 0)
		requireCode(t, status.InvalidArgument, err)
		require.ErrorContains(t, err, "67108864: plan fewer tokens")
	}
}

func BenchmarkSubmitPlanned(b *testing.B) {
	directory := metadatatest.NewDirectory()
	e := startEngine(b, directory, nil)
	transport := &atOnce{}
	_, err := e.Install("fake", func(*core.Engine) (core.Transport, error) { return transport, nil })
	require.NoError(b, err)
	segment := open(b, e, startPeer(b, directory).Name())
	memory := pages(b, 1<<20)
	require.NoError(b, e.Register(at(memory), 1<<20, "cpu:0", true))
	half := uint64(at(memory)) + 1<<19
	source := cache(uint64(at(memory)), half, 1000, 10, layout.Span{Count: 4})
	destination := cache(0x10000000, 0x20000000, 1000, 10, layout.Span{First: 2, Count: 2})
	blocks := make([]uint64, 1000)
	for i := range blocks {
		blocks[i] = uint64(i * 7 % 1000)
	}
	request := layout.Request{
		Sources:      []layout.Place{{Layout: source, Blocks: blocks}},
		Destinations: []layout.Place{{Layout: destination, Blocks: blocks}}, Tokens: 10000,
	}
	b.ReportAllocs()
	for b.Loop() {
		plan, err := request.NewPlan()
		require.NoError(b, err)
		batch, err := e.SubmitPlanned(core.Planned{Opcode: core.Write, Target: segment, Transfer: plan.Transfers[0]}, 0)
		require.NoError(b, err)
		require.NoError(b, e.FreeBatch(batch))
		b.ReportMetric(float64(plan.Transfers[0].Runs), "runs")
	}
}
