package client

import (
	"slices"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"

	"github.com/stretchr/testify/require"
)

// woken is a lane that counts how often it was woken.
type woken struct {
	pipelined
	times int
}

func (w *woken) wake() { w.times++ }

func anything(*cursor) bool { return true }

// cautious is a peer of which a transfer waits for a page, its lanes, and a piece of another work, whose memory is not there.
func cautious(lanes ...carrier) (*peer, *piece) {
	p := newPeer(&Client{Options: Options{Config: &core.Config{LanesPerPeer: 1}, Processors: testProcessors}}, &core.Segment{})
	p.carriers.Store(newCarriers(lanes))
	gone := &woken{}
	p.overtaken = []carrier{gone}
	p.holdUp(gone, []*core.Work{workOf(write(0x1000, 0x10000, 1))})
	return p, &piece{work: workOf(write(0x1000, 0x10000, 1)), op: core.Write, local: 0x1000, length: 1}
}

func TestOneLaneAtATimeMayWaitForFurtherPages(t *testing.T) {
	a, b := &woken{}, &woken{}
	p, first := cautious(a, b)
	second := *first
	second.work = workOf(write(0x1000, 0x10000, 1))
	require.True(t, p.mayTouch(a, first))
	require.True(t, p.mayTouch(a, first), "it is the one")
	require.False(t, p.mayTouch(b, &second))
	p.setAside(second, anything)
	require.Equal(t, 1, a.times, "it may have nothing to wait for")

	p.endTouching(b, p.hasTouched(b))
	require.Zero(t, p.again, "it is not the one")
	p.endTouching(a, p.hasTouched(a))
	require.Equal(t, 1, p.again)
	require.Equal(t, 1, b.times, "the first lane may be one for other works")
	require.True(t, p.mayTouch(b, &second))
}

func TestNoLaneWaitsForAPageThatCouldNotBeOvertaken(t *testing.T) {
	a := &woken{}
	p, cold := cautious(a)
	for len(p.overtaken) < p.mostOvertaken() {
		p.overtaken = append(p.overtaken, &woken{})
	}
	require.False(t, p.mayTouch(a, cold))
	p.setAside(*cold, anything)
	p.endTouching(a, p.hasTouched(a))
	require.Zero(t, p.again)
	p.remove(p.overtaken[0])
	require.Equal(t, 1, p.again, "one has ended")
}

// A lane that is renewed takes a place, too. The lane that waits for a page meanwhile may be the only one that there may be.
func TestTheLaneThatMayWaitForAPageIsOvertakenInAnyCase(t *testing.T) {
	a, b := &woken{}, &woken{}
	p, cold := cautious(a, b)
	for len(p.overtaken) < p.mostOvertaken()-1 {
		p.overtaken = append(p.overtaken, &woken{})
	}
	require.True(t, p.mayTouch(a, cold))
	require.True(t, p.mayBeOvertaken(b))
	p.overtaken = append(p.overtaken, &woken{})
	require.True(t, p.mayBeOvertaken(a))
	require.False(t, p.mayBeOvertaken(b))
	p.remove(a)
	require.False(t, p.mayTouch(b, cold))
}

func TestWithoutATransferThatWaitsLanesTakeAnything(t *testing.T) {
	a, b := &woken{}, &woken{}
	p, cold := cautious(a, b)
	p.heldUp = nil
	require.True(t, p.mayTouch(a, cold))
	require.True(t, p.mayTouch(b, cold))
	require.Nil(t, p.touching)
}

// While a lane is reserved for short works, each lane leaves many works to others. It looks at what was set aside of them, too.
func TestWhatIsLookedAtInVainIsSetAsideAgainAsItWas(t *testing.T) {
	const works = 3
	a := &woken{}
	p, _ := cautious(a)
	p.touching = a
	for i := range works {
		w := workOf(write(0x1000, 0x10000+uint64(i), 2))
		c := newCursor(w)
		p.queued += w.Bytes
		p.aside = append(p.aside, aside{c.cut(1, &metadata.Descriptor{}), c})
	}
	before := slices.Clone(p.aside)
	nothing := func(*cursor) bool { return false }
	require.True(t, p.lookAgain(works))
	for range works {
		next, ok := p.next(1, nil, destination{}, nothing, false)
		require.True(t, ok)
		p.setAside(next, nothing)
	}
	_, ok := p.next(1, nil, destination{}, nothing, false)
	require.False(t, ok, "each is looked at once")
	require.Equal(t, before, p.aside)
	require.Empty(t, p.cursors)
	require.EqualValues(t, 2*works, p.queued)
}
