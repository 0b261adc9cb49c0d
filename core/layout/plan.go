package layout

import (
	"errors"
	"fmt"
)

// Request is tokens of a KV cache that move from the processes that hold it to those that need it.
type Request struct {
	Sources      []Place
	Destinations []Place
	Tokens       uint64
	// Partial: elements of the destinations that no source has stay as they are. Otherwise they are an error.
	Partial bool
}

// Plan is what has to move. It does not change, and keeps neither the request nor its tables.
type Plan struct {
	Transfers []*Transfer // by destination, and then by source. Those that have nothing in common have none
}

// Transfer is what moves from one source to one destination.
type Transfer struct {
	Source, Destination int    // indices into the request's places
	Runs                uint64 // how many ranges of bytes, each contiguous on both sides
	Bytes               uint64

	SourceKey, DestinationKey Key // of the offers that the places are of; zero for none

	tokens *grouping
	kinds  []kind
	pairs  []pair

	listed []Pattern // all of its patterns, of a transfer that was not planned; nil for the others
}

// MaxPlaces is how many sources a request may have, and how many destinations.
const MaxPlaces = 1024

// maxBoxes is how many boxes of coordinates are compared before a request is refused, where a pair of tensors that is
// found counts as pairBoxes. That takes about a second. 16 processes on either side with 160 tensors each need a third.
const (
	maxBoxes  = 1 << 25
	pairBoxes = 64
)

// maxForms limits the memory of a transfer whose tables and tensors are irregular beyond use.
const maxForms = 1 << 16

// steps are a tensor's strides in bytes along its tokens.
type steps struct{ block, token int64 }

func (s steps) bytes(blocks, tokens int64) int64 { return blocks*s.block + tokens*s.token }

// pair is a tensor of each side, and the part that they have in common: the addresses of its first element in block
// 0.
type pair struct {
	source, destination uint64
	kind                int // index into Transfer.kinds
}

// kind is what pairs with the same strides have in common.
type kind struct {
	kindKey
	forms []form // for each shape of groups
}

type kindKey struct {
	source, destination steps
	fixed               [4]Axis // layer, KV, head and dim: the same for each token
}

// NewPlan compares the layouts of both sides. Each element of a destination comes from one source, also where several
// have it. The errors name what does not fit: sizes that differ, tables without room, elements that no source has.
func (r *Request) NewPlan() (*Plan, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	p := &Plan{}
	if r.Tokens == 0 {
		return p, nil
	}
	left := maxBoxes
	for d := range r.Destinations {
		if err := r.planDestination(p, d, &left); err != nil {
			return nil, fmt.Errorf("destination %d: %w", d, err)
		}
	}
	return p, nil
}

func (r *Request) check() error {
	for _, side := range []struct {
		name   string
		places []Place
	}{{"source", r.Sources}, {"destination", r.Destinations}} {
		if len(side.places) < 1 || len(side.places) > MaxPlaces {
			return fmt.Errorf("there are %d %ss, where 1 to %d are allowed", len(side.places), side.name, MaxPlaces)
		}
		for i := range side.places {
			p := &side.places[i]
			if err := p.Layout.matches(r.Sources[0].Layout); err != nil {
				return fmt.Errorf("%s %d and source 0 do not match: %w", side.name, i, err)
			}
			if err := p.check(r.Tokens); err != nil {
				return fmt.Errorf("%s %d: %w", side.name, i, err)
			}
		}
	}
	for i := range r.Destinations {
		if err := r.Destinations[i].checkDistinct(r.Tokens); err != nil {
			return fmt.Errorf("destination %d: %w", i, err)
		}
	}
	return nil
}

// matches says why a layout is not one of the same cache.
func (l *Layout) matches(other *Layout) error {
	if l.DType != other.DType && l.DType != "" && other.DType != "" {
		return fmt.Errorf("elements of type %s and of type %s", l.DType, other.DType)
	}
	for _, size := range []struct {
		name       string
		mine, that uint64
	}{
		{"element size in bytes", l.ElementSize, other.ElementSize}, {"number of layers", l.Layers, other.Layers},
		{"number of K and V", l.KV, other.KV}, {"number of heads", l.HeadsOf, other.HeadsOf},
		{"elements of a head", l.Dim, other.Dim},
	} {
		if size.mine != size.that {
			return fmt.Errorf("%s %d and %d", size.name, size.mine, size.that)
		}
	}
	return nil
}

// planDestination finds a source for each element of a destination, and adds the transfers. left is how many boxes may
// still be compared.
func (r *Request) planDestination(p *Plan, d int, left *int) error {
	to := r.Destinations[d].Layout
	builders := make([]builder, len(r.Sources))
	for i := range to.Tensors {
		t := &to.Tensors[i]
		missing := []box{to.box(t)}
		for n := range r.Sources {
			// Where several sources have the same elements, destinations prefer different ones.
			s := (d*len(r.Sources)/len(r.Destinations) + n) % len(r.Sources)
			missing = builders[s].take(r.Sources[s].Layout, to, t, missing, left)
			if *left < 0 {
				return errors.New("there are too many combinations of tensors")
			}
			if len(missing) == 0 {
				break
			}
		}
		if len(missing) > 0 && !r.Partial {
			return fmt.Errorf("no source has %v", missing[0])
		}
	}
	found := false
	for s := range builders {
		if len(builders[s].pairs) == 0 {
			continue
		}
		t, err := builders[s].transfer(&r.Sources[s], &r.Destinations[d], r.Tokens)
		if err != nil {
			return fmt.Errorf("source %d: %w", s, err)
		}
		t.Source, t.Destination, found = s, d, true
		t.SourceKey, t.DestinationKey = r.Sources[s].Key, r.Destinations[d].Key
		p.Transfers = append(p.Transfers, t)
	}
	if !found {
		return errors.New("no source has any of its elements")
	}
	return nil
}

// builder collects what one destination gets from one source.
type builder struct {
	kinds       []kind
	pairs       []pair
	index       map[kindKey]int // into kinds
	elementSize uint64
}

// take takes what the source has of the missing boxes of a destination's tensor, and returns what is still missing. It
// stops when no more boxes may be compared.
func (b *builder) take(source, to *Layout, t *Tensor, missing []box, left *int) []box {
	for i := range source.Tensors {
		if *left -= len(missing); *left < 0 {
			break
		}
		from := &source.Tensors[i]
		has := source.box(from)
		var rest []box
		for n, want := range missing {
			both := has.common(want)
			if both.empty() {
				if rest != nil {
					rest = append(rest, want)
				}
				continue
			}
			if rest == nil {
				rest = append(make([]box, 0, len(missing)+2*boxAxes), missing[:n]...)
			}
			rest = want.without(both, rest)
			b.addPairs(source, to, from, t, both, left)
		}
		if rest != nil {
			missing = rest
		}
		if len(missing) == 0 {
			break
		}
	}
	return missing
}

// addPairs adds the part of two tensors that both have: as one pair where its layers are at regular addresses on both
// sides.
func (b *builder) addPairs(source, to *Layout, from, t *Tensor, both box, left *int) {
	b.elementSize = to.ElementSize
	heads, dims, kv := both[headAxis], both[dimAxis], both[kvAxis]
	key := kindKey{
		source:      steps{int64(from.Strides.Block), int64(from.Strides.Token)},
		destination: steps{int64(t.Strides.Block), int64(t.Strides.Token)},
		fixed: [4]Axis{
			kvAxis:   {kv.Count, int64(from.Strides.KV), int64(t.Strides.KV)},
			headAxis: {heads.Count, int64(from.Strides.Head), int64(t.Strides.Head)},
			dimAxis:  {dims.Count, int64(from.Strides.Dim), int64(t.Strides.Dim)},
		},
	}
	layers := both[layerAxis]
	sources := from.Addresses[layers.First-from.FirstLayer:][:layers.Count]
	destinations := t.Addresses[layers.First-t.FirstLayer:][:layers.Count]
	sourceOffset := from.offset(kv, heads, dims, source.Heads)
	destinationOffset := t.offset(kv, heads, dims, to.Heads)
	for first := 0; first < len(sources); {
		axis := progression(sources[first:], destinations[first:])
		if axis.Count < 3 && int(axis.Count) < len(sources) {
			axis = Axis{Count: 1} // two places always have a regular distance
		}
		key.fixed[layerAxis] = axis
		*left -= pairBoxes
		b.pairs = append(b.pairs, pair{sources[first] + sourceOffset, destinations[first] + destinationOffset, b.kind(key)})
		first += int(axis.Count)
	}
}

// offset is how many bytes behind the tensor's first element these begin.
func (t *Tensor) offset(kv, heads, dims, held Span) uint64 {
	return (kv.First-t.KV.First)*t.Strides.KV + (heads.First-held.First)*t.Strides.Head +
		(dims.First-t.Dims.First)*t.Strides.Dim
}

// progression is how many addresses from the first one on have the same distance from each other on both sides.
func progression(sources, destinations []uint64) Axis {
	if len(sources) == 1 {
		return Axis{Count: 1}
	}
	axis := Axis{Count: 2, Source: int64(sources[1] - sources[0]), Destination: int64(destinations[1] - destinations[0])}
	for i := 2; i < len(sources) && int64(sources[i]-sources[i-1]) == axis.Source &&
		int64(destinations[i]-destinations[i-1]) == axis.Destination; i++ {
		axis.Count++
	}
	return axis
}

// kind finds or makes the kind of a pair.
func (b *builder) kind(key kindKey) int {
	if last := len(b.kinds) - 1; last >= 0 && b.kinds[last].kindKey == key {
		return last
	}
	if b.index == nil {
		b.index = map[kindKey]int{}
	}
	index, known := b.index[key]
	if !known {
		index = len(b.kinds)
		b.index[key] = index
		b.kinds = append(b.kinds, kind{kindKey: key})
	}
	return index
}

// transfer combines the pairs of tensors with the tokens.
func (b *builder) transfer(source, destination *Place, tokens uint64) (*Transfer, error) {
	g := groupTokens(source, destination, tokens)
	if len(g.shapes)*len(b.kinds) > maxForms {
		return nil, fmt.Errorf("%d kinds of tensors and %d kinds of steps in the tables are too many combinations",
			len(b.kinds), len(g.shapes))
	}
	t := &Transfer{tokens: g, kinds: b.kinds, pairs: b.pairs}
	for i := range t.kinds {
		t.kinds[i].addForms(g, b.elementSize)
	}
	for _, p := range t.pairs {
		for i, f := range t.kinds[p.kind].forms {
			runs := f.runs * g.counts[i]
			t.Runs += runs
			t.Bytes += runs * f.run
		}
	}
	return t, nil
}

// addForms computes the forms of a kind.
func (k *kind) addForms(g *grouping, elementSize uint64) {
	for _, s := range g.shapes {
		axis := func(count uint64, step spot) Axis {
			return Axis{
				Count: count, Source: k.source.bytes(step.sourceBlock, step.sourceToken),
				Destination: k.destination.bytes(step.destinationBlock, step.destinationToken),
			}
		}
		axes := append(k.fixed[:], axis(s.tokens, spot{0, 1, 0, 1}), axis(s.inner, s.innerStep), axis(s.outer, s.outerStep))
		k.forms = append(k.forms, newForm(elementSize, axes))
	}
}
