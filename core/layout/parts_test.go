package layout

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// bytePair is where a byte lies on both sides.
type bytePair struct{ source, destination uint64 }

func appendBytes(all []bytePair, r Run) []bytePair {
	for i := range r.Bytes {
		all = append(all, bytePair{r.Source + i, r.Destination + i})
	}
	return all
}

func TestPartsAreAllRunsInOrderHoweverTheyAreCut(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		plan, err := randomScene(r).NewPlan()
		require.NoError(t, err)
		for _, transfer := range plan.Transfers {
			var want, got []bytePair
			portion := make([]Run, 7)
			runs := transfer.Each()
			for n := runs.Next(portion); n > 0; n = runs.Next(portion) {
				for _, run := range portion[:n] {
					want = appendBytes(want, run)
				}
			}
			parts := transfer.Parts()
			for parts.Left() {
				limit := upTo(r, 200)
				var part Pattern
				if r.IntN(3) == 0 {
					part = parts.CutRun(limit)
					require.Empty(t, part.Axes())
				} else {
					width := r.Uint64N(2000)
					fits := func(p *Pattern) bool {
						_, destination := p.Bounds()
						return destination.Bytes <= width
					}
					part = parts.Cut(limit, fits)
					require.True(t, len(part.Axes()) == 0 || fits(&part))
				}
				require.LessOrEqual(t, part.Bytes(), limit)
				for _, run := range appendRuns(nil, part.Axes(), Run{part.Source, part.Destination, part.Run}) {
					got = appendBytes(got, run)
				}
			}
			require.Equal(t, want, got)
		}
	}
}

func TestAPartIsAsLargeAsItsLimitAllows(t *testing.T) {
	all := Span{0, 8}
	request := Request{
		Sources:      []Place{{Layout: hnd(2, 128, all), Blocks: numbers(0, 2)}},
		Destinations: []Place{{Layout: nhd(16, 16, all), Blocks: numbers(0, 16)}}, Tokens: 256,
	}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	parts := plan.Transfers[0].Parts()
	const limit = 256 << 10
	for range 4 * 2 * 256 * 8 * 256 / limit {
		part := parts.Cut(limit, nil)
		require.EqualValues(t, limit, part.Bytes())
	}
	require.False(t, parts.Left())
}
