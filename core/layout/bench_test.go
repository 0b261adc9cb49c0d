package layout

import (
	"math/rand/v2"
	"testing"
)

// benchmarkPlan plans 320 random blocks of 16 tokens from one of two ranks to one of one, in HND and NHD: patterns of
// 256 bytes.
func benchmarkPlan(b *testing.B, use func(*Transfer)) {
	r := rand.New(rand.NewPCG(1, 1))
	table := func() (blocks []uint64) {
		for _, n := range r.Perm(1000)[:320] {
			blocks = append(blocks, uint64(n))
		}
		return blocks
	}
	request := Request{
		Sources:      []Place{{Layout: nhd(1000, 16, Span{4, 4}), Blocks: table()}},
		Destinations: []Place{{Layout: nhd(1000, 16, Span{0, 8}), Blocks: table()}}, Tokens: 320 * 16, Partial: true,
	}
	b.ReportAllocs()
	for b.Loop() {
		plan, err := request.NewPlan()
		if err != nil {
			b.Fatal(err)
		}
		use(plan.Transfers[0])
	}
}

func BenchmarkPlan(b *testing.B) {
	benchmarkPlan(b, func(t *Transfer) { b.ReportMetric(float64(t.Runs), "runs") })
}

func BenchmarkPlanAndPatterns(b *testing.B) {
	benchmarkPlan(b, func(t *Transfer) {
		patterns := 0
		for range t.Patterns() {
			patterns++
		}
		b.ReportMetric(float64(patterns), "patterns")
	})
}

func BenchmarkPlanAndRuns(b *testing.B) {
	portion := make([]Run, 256)
	benchmarkPlan(b, func(t *Transfer) {
		for runs := t.Each(); runs.Next(portion) > 0; {
		}
		b.ReportMetric(float64(t.Runs), "runs")
	})
}
