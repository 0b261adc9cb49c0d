package layout

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// scene is a request between random processes.
type scene struct {
	model
	Request
	sources, destinations []*process
}

// ranks are processes that hold a cache by tensor and pipeline parallelism.
func ranks(r *rand.Rand, m model, tokens uint64) (all []*process, places []Place) {
	tensor := pick[uint64](r, 1, 1, 2, 3, 4, 8, 16)
	stages := upTo(r, min(m.layers, pick[uint64](r, 1, 1, 3)))
	for stage := range stages {
		for rank := range tensor {
			p := randomProcess(r, m, split(m.layers, stages, stage), split(m.heads, tensor, rank), tokens)
			all, places = append(all, p), append(places, p.Place)
		}
	}
	return all, places
}

func randomScene(r *rand.Rand) *scene {
	s := &scene{model: randomModel(r)}
	s.Tokens = pick(r, 1, upTo(r, 20), upTo(r, 300))
	s.sources, s.Sources = ranks(r, s.model, s.Tokens)
	s.destinations, s.Destinations = ranks(r, s.model, s.Tokens)
	for _, p := range s.sources {
		p.fill(s.model, s.Tokens)
	}
	return s
}

// wanted is a destination's memory as it should be afterwards, element by element.
func (s *scene) wanted(d int) []byte {
	after := *s.destinations[d]
	after.memory = slices.Clone(after.memory)
	s.eachElement(s.Tokens, func(layer, kv, head, dim, token uint64) {
		to := after.element(layer, kv, head, dim, token)
		for _, p := range s.sources {
			if from := p.element(layer, kv, head, dim, token); from != nil && to != nil {
				copy(to, from)
				return
			}
		}
	})
	return after.memory
}

// check plans and moves, and compares the memory of each destination with what it should be.
func (s *scene) check(t *testing.T, r *rand.Rand) {
	for _, p := range slices.Concat(s.sources, s.destinations) {
		require.NoError(t, p.Layout.Check())
	}
	plan, err := s.NewPlan()
	require.NoError(t, err)
	want, written := make([][]byte, len(s.destinations)), make([][]bool, len(s.destinations))
	for d := range s.destinations {
		want[d], written[d] = s.wanted(d), make([]bool, len(s.destinations[d].memory))
	}
	for _, transfer := range plan.Transfers {
		move(t, r, transfer, s.sources[transfer.Source], s.destinations[transfer.Destination], written[transfer.Destination])
	}
	for d := range s.destinations {
		require.Equal(t, want[d], s.destinations[d].memory)
	}
}

func TestPlansMoveEachElementAndTouchNothingElse(t *testing.T) {
	for seed := range uint64(250) {
		r := rand.New(rand.NewPCG(seed, 1))
		randomScene(r).check(t, r)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzPlansMoveEachElementAndTouchNothingElse(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 2))
		randomScene(r).check(t, r)
	})
}

func TestPartialPlansMoveWhatTheSourcesHave(t *testing.T) {
	for seed := range uint64(120) {
		r := rand.New(rand.NewPCG(seed, 3))
		s := randomScene(r)
		some := 1 + r.IntN(len(s.sources))
		s.sources, s.Sources = s.sources[:some], s.Sources[:some]
		// Destinations that have nothing in common with the sources are another test's.
		needs := func(p *process) bool {
			found := false
			s.eachElement(1, func(layer, kv, head, dim, token uint64) {
				for _, from := range s.sources {
					found = found || p.element(layer, kv, head, dim, token) != nil && from.element(layer, kv, head, dim, token) != nil
				}
			})
			return found
		}
		s.destinations = slices.DeleteFunc(s.destinations, func(p *process) bool { return !needs(p) })
		s.Destinations = nil
		for _, p := range s.destinations {
			s.Destinations = append(s.Destinations, p.Place)
		}
		s.Partial = true
		s.check(t, r)
	}
}

func TestPatternsAreTheRunsOfATransfer(t *testing.T) {
	most := 0
	for seed := range uint64(120) {
		r := rand.New(rand.NewPCG(seed, 4))
		s := randomScene(r)
		plan, err := s.NewPlan()
		require.NoError(t, err)
		for _, transfer := range plan.Transfers {
			var runs []Run
			for p := range transfer.Patterns() {
				most = max(most, len(p.Axes()))
				before := len(runs)
				runs = appendRuns(runs, p.Axes(), Run{p.Source, p.Destination, p.Run})
				require.EqualValues(t, p.Runs(), len(runs)-before)
				requireBounds(t, p, runs[before:])
			}
			each, all, portion := transfer.Each(), []Run(nil), make([]Run, 1+r.IntN(50))
			for n := each.Next(portion); n > 0; n = each.Next(portion) {
				all = append(all, portion[:n]...)
			}
			require.Equal(t, all, runs)
			require.EqualValues(t, transfer.Runs, len(runs))
		}
	}
	require.Equal(t, MaxAxes, most, "the scenes have patterns with all axes")
}

// appendRuns expands a pattern, the outermost axis first.
func appendRuns(runs []Run, axes []Axis, at Run) []Run {
	if len(axes) == 0 {
		return append(runs, at)
	}
	for range axes[0].Count {
		runs = appendRuns(runs, axes[1:], at)
		at.Source += uint64(axes[0].Source)
		at.Destination += uint64(axes[0].Destination)
	}
	return runs
}

func requireBounds(t *testing.T, p Pattern, runs []Run) {
	source, destination := p.Bounds()
	first := Run{runs[0].Source, runs[0].Destination, p.Run}
	end := Run{}
	for _, run := range runs {
		first.Source, first.Destination = min(first.Source, run.Source), min(first.Destination, run.Destination)
		end.Source, end.Destination = max(end.Source, run.Source+run.Bytes), max(end.Destination, run.Destination+run.Bytes)
	}
	require.Equal(t, Range{first.Source, end.Source - first.Source}, source)
	require.Equal(t, Range{first.Destination, end.Destination - first.Destination}, destination)
}
