package layout

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestATransferThatPassesThroughABufferMovesTheSameBytes(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 1))
	for range 40 {
		m := randomModel(r)
		tokens := upTo(r, 60)
		from := randomProcess(r, m, Span{0, m.layers}, Span{0, m.heads}, tokens)
		to := randomProcess(r, m, Span{0, m.layers}, Span{0, m.heads}, tokens)
		request := Request{Sources: []Place{from.Place}, Destinations: []Place{to.Place}, Tokens: tokens}
		plan, err := request.NewPlan()
		require.NoError(t, err)
		transfer := plan.Transfers[0]
		for _, side := range []Side{Source, Destination} {
			want, got := map[[2]uint64]bool{}, map[[2]uint64]bool{}
			eachByte(transfer, func(run Run, i uint64) { want[[2]uint64{run.Source + i, run.Destination + i}] = true })
			limit := upTo(r, 300)
			parts := transfer.Parts()
			for parts.Left() {
				part := parts.Cut(limit, nil)
				part.Sort(side.Other())
				base := r.Uint64N(1 << 40)
				packed := part.Packed(side, base)
				require.Equal(t, part.Runs(), packed.Runs())
				packed = packed.Merged()
				require.Equal(t, part.Bytes(), packed.Bytes())
				require.LessOrEqual(t, packed.Runs(), part.Runs())
				var unpacked []uint64 // where each byte of the buffer is
				eachByte(Listed([]Pattern{part}), func(run Run, i uint64) {
					if side == Source {
						unpacked = append(unpacked, run.Source+i)
					} else {
						unpacked = append(unpacked, run.Destination+i)
					}
				})
				eachByte(Listed([]Pattern{packed}), func(run Run, i uint64) {
					if side == Source {
						got[[2]uint64{unpacked[run.Source+i-base], run.Destination + i}] = true
					} else {
						got[[2]uint64{run.Source + i, unpacked[run.Destination+i-base]}] = true
					}
				})
			}
			require.Equal(t, want, got)
		}
	}
}

// eachByte calls f for each byte of a transfer, in the order of its runs.
func eachByte(t *Transfer, f func(run Run, i uint64)) {
	runs := t.Each()
	for portion := make([]Run, 10); ; {
		n := runs.Next(portion)
		if n == 0 {
			return
		}
		for _, run := range portion[:n] {
			for i := range run.Bytes {
				f(run, i)
			}
		}
	}
}

func TestPackedBytesAreAsFewRunsAsTheOtherSideAllows(t *testing.T) {
	source := Place{Layout: hnd(2, 128, Span{0, 8}), Blocks: numbers(0, 2)}
	destination := Place{Layout: nhd(101, 16, Span{0, 8}), Blocks: numbers(50, 16)}
	for _, side := range []Side{Source, Destination} {
		p := only(t, source, destination, 256)[0]
		require.Len(t, p.Axes(), 4)
		p.Sort(side.Other())
		packed := p.Packed(side, 5)
		packed = packed.Merged()
		require.LessOrEqual(t, packed.Runs(), uint64(8), "K and V of each layer, or less: both sides have whole blocks in order")
	}
}

func TestListedPatternsAreATransfer(t *testing.T) {
	list := []Pattern{pattern(100, 200, 3, Axis{2, 10, 5}), pattern(1, 2, 7)}
	transfer := Listed(list)
	require.Equal(t, [2]uint64{3, 13}, [2]uint64{transfer.Runs, transfer.Bytes})
	require.Equal(t, list, slices.Collect(transfer.Patterns()))
	runs, portion := transfer.Each(), make([]Run, 9)
	require.Equal(t, []Run{{100, 200, 3}, {110, 205, 3}}, portion[:runs.Next(portion)])
	require.Equal(t, []Run{{1, 2, 7}}, portion[:runs.Next(portion)])
	require.Zero(t, runs.Next(portion))
}
