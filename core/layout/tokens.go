package layout

import (
	"fmt"
	"slices"
)

// Place is where the tokens of a request lie in a layout: in numbered blocks, or in numbered slots, one or the other.
// Slot s is token s mod BlockTokens of block s / BlockTokens.
type Place struct {
	Layout *Layout
	Blocks []uint64 // position p is token p mod BlockTokens of Blocks[p / BlockTokens]
	Slots  []uint64 // position p is Slots[p]
	First  uint64   // the position of the first token that moves. Those before it stay as they are
	Key    Key      // of the offer that the place is of; zero for none
}

// check says that the place has no room for so many tokens, or names blocks and slots that do not exist.
func (p *Place) check(tokens uint64) error {
	name, table, each, end := "block", p.Blocks, p.Layout.BlockTokens, p.Layout.Blocks
	if p.Slots != nil {
		name, table, each, end = "slot", p.Slots, 1, end*each
		if p.Blocks != nil {
			return fmt.Errorf("it has blocks and slots, where one of them is needed")
		}
	}
	if room := uint64(len(table)) * each; p.First > room || tokens > room-p.First {
		return fmt.Errorf("%d %ss have room for %d tokens, and %d from position %d on do not fit",
			len(table), name, room, tokens, p.First)
	}
	for i, number := range p.used(tokens) {
		if number >= end {
			return fmt.Errorf("%s %d, number %d of the table, is not within %d", name, number, i, end)
		}
	}
	return nil
}

// used is the part of the table that has the tokens.
func (p *Place) used(tokens uint64) []uint64 {
	table, each := p.Blocks, p.Layout.BlockTokens
	if p.Slots != nil {
		table, each = p.Slots, 1
	}
	return table[p.First/each : (p.First+tokens+each-1)/each]
}

// checkDistinct says that two tokens have the same place.
func (p *Place) checkDistinct(tokens uint64) error {
	used := p.used(tokens)
	if repeated, found := firstRepeated(used); found {
		return fmt.Errorf("number %d is twice in its table: two tokens would have the same place", repeated)
	}
	return nil
}

// firstRepeated finds a number that is in a list twice.
func firstRepeated(numbers []uint64) (number uint64, found bool) {
	const fewBits = 1 << 23 // a bitmap of 1 MiB
	if len(numbers) == 0 {
		return 0, false
	}
	highest := slices.Max(numbers)
	if highest >= fewBits {
		sorted := slices.Clone(numbers)
		slices.Sort(sorted)
		for i := 1; i < len(sorted); i++ {
			if sorted[i] == sorted[i-1] {
				return sorted[i], true
			}
		}
		return 0, false
	}
	seen := make([]uint64, highest/64+1)
	for _, n := range numbers {
		if seen[n/64]>>(n%64)&1 != 0 {
			return n, true
		}
		seen[n/64] |= 1 << (n % 64)
	}
	return 0, false
}

// walk goes through the tokens of a place in order.
type walk struct {
	place    *Place
	position uint64 // of the next token
	block    uint64
	token    uint64 // within the block
	left     uint64 // how many tokens from the next one on follow each other in the block
}

// find finds where the next token is.
func (w *walk) find(end uint64) {
	each := w.place.Layout.BlockTokens
	if w.place.Slots == nil {
		w.block, w.token = w.place.Blocks[w.position/each], w.position%each
		w.left = each - w.token
		return
	}
	slot := w.place.Slots[w.position]
	w.block, w.token, w.left = slot/each, slot%each, 1
	for w.token+w.left < each && w.position+w.left < end && w.place.Slots[w.position+w.left] == slot+w.left {
		w.left++
	}
}

// advance goes on by some of the tokens that are left in the block.
func (w *walk) advance(tokens, end uint64) {
	w.position, w.token, w.left = w.position+tokens, w.token+tokens, w.left-tokens
	if w.left == 0 && w.position < end {
		w.find(end)
	}
}

// spot is a place on both sides: blocks, and tokens within them. Also a step from one such place to another, which
// may be negative.
type spot struct{ sourceBlock, sourceToken, destinationBlock, destinationToken int64 }

func (s spot) minus(other spot) spot {
	return spot{
		s.sourceBlock - other.sourceBlock, s.sourceToken - other.sourceToken,
		s.destinationBlock - other.destinationBlock, s.destinationToken - other.destinationToken,
	}
}

// near reports whether a step goes no further than so many blocks on either side.
func (s spot) near(blocks int64) bool {
	return max(s.sourceBlock, -s.sourceBlock, s.destinationBlock, -s.destinationBlock) <= blocks
}

// shape is the tokens of a group: `tokens` that follow each other in one block on either side, `inner` times with a
// step between them, and all of that `outer` times.
type shape struct {
	tokens, inner, outer uint64
	innerStep, outerStep spot
}

// group is tokens with a shape.
type group struct {
	at    spot // of the first token
	shape int  // index into grouping.shapes
}

// grouping collects which tokens move from where to where, in as few groups as it finds.
type grouping struct {
	shapes []shape
	counts []uint64 // groups of each shape
	groups []group
	index  map[shape]int // into shapes

	now, lastInner, lastOuter spot // the group in the making, and where its last parts began
	shape                     shape
	inner                     shape // inner parts in the making, which may go on the group
	innerAt                   spot
}

// groupTokens compares where the tokens lie on both sides.
func groupTokens(source, destination *Place, tokens uint64) *grouping {
	g := &grouping{index: map[shape]int{}}
	from, to := walk{place: source, position: source.First}, walk{place: destination, position: destination.First}
	fromEnd, toEnd := source.First+tokens, destination.First+tokens
	from.find(fromEnd)
	to.find(toEnd)
	for from.position < fromEnd {
		count := min(from.left, to.left, fromEnd-from.position)
		g.add(spot{int64(from.block), int64(from.token), int64(to.block), int64(to.token)}, count)
		from.advance(count, fromEnd)
		to.advance(count, toEnd)
	}
	g.endInner()
	g.endGroup()
	return g
}

// add adds tokens that follow each other on both sides.
func (g *grouping) add(at spot, tokens uint64) {
	if step := at.minus(g.lastInner); g.inner.tokens == tokens {
		if g.inner.inner == 1 && step.near(1) {
			g.inner.innerStep = step
		}
		if g.inner.innerStep == step {
			g.inner.inner++
			g.lastInner = at
			return
		}
	}
	g.endInner()
	g.inner, g.innerAt, g.lastInner = shape{tokens: tokens, inner: 1, outer: 1}, at, at
}

// endInner puts the inner parts into the group, or into a new one.
func (g *grouping) endInner() {
	part := g.inner
	if part.tokens == 0 {
		return
	}
	step := g.innerAt.minus(g.lastOuter)
	if g.shape.tokens == part.tokens && g.shape.inner == part.inner && g.shape.innerStep == part.innerStep {
		if g.shape.outer == 1 && step.near(int64(part.inner)) {
			g.shape.outerStep = step
		}
		if g.shape.outerStep == step {
			g.shape.outer++
			g.lastOuter = g.innerAt
			return
		}
	}
	g.endGroup()
	g.shape, g.now, g.lastOuter = part, g.innerAt, g.innerAt
}

// endGroup takes the group up.
func (g *grouping) endGroup() {
	if g.shape.tokens == 0 {
		return
	}
	index, known := g.index[g.shape]
	if !known {
		index = len(g.shapes)
		g.index[g.shape] = index
		g.shapes, g.counts = append(g.shapes, g.shape), append(g.counts, 0)
	}
	g.counts[index]++
	g.groups = append(g.groups, group{g.now, index})
}
