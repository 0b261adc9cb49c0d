package layout

import (
	"fmt"
	"strings"
)

// The axes of a box.
const (
	layerAxis = iota
	kvAxis
	headAxis
	dimAxis
	boxAxes
)

// box is the coordinates of a part of a model's cache, for any token.
type box [boxAxes]Span

// box are the coordinates that a tensor has.
func (l *Layout) box(t *Tensor) box { return box{t.layers(), t.KV, l.Heads, t.Dims} }

func (b box) empty() bool {
	for _, span := range b {
		if span.Count == 0 {
			return true
		}
	}
	return false
}

func (b box) common(other box) box {
	for i := range b {
		b[i] = b[i].common(other[i])
	}
	return b
}

// without appends what is left of a box when a part of it, a box within it, is taken out.
func (b box) without(part box, to []box) []box {
	for i := range b {
		before, after := b, b
		before[i].Count = part[i].First - b[i].First
		after[i] = Span{part[i].end(), b[i].end() - part[i].end()}
		for _, rest := range []box{before, after} {
			if rest[i].Count > 0 {
				to = append(to, rest)
			}
		}
		b[i] = part[i]
	}
	return to
}

func (b box) String() string {
	var words []string
	for i, name := range []string{"layer", "K/V", "head", "dim"} {
		words = append(words, fmt.Sprintf("%s %v", name, b[i]))
	}
	return strings.Join(words, ", ")
}
