package metrics

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestADurationIsCountedUnderTheFirstBoundThatItDoesNotExceed(t *testing.T) {
	for _, c := range []struct {
		took time.Duration
		want int
	}{
		{-1, 0}, {0, 0}, {1, 0}, {time.Microsecond, 0}, {time.Microsecond + 1, 1}, {2 * time.Microsecond, 1}, {2*time.Microsecond + 1, 2},
		{3 * time.Microsecond, 2}, {time.Second, 20}, {Bound(Bounds - 1), Bounds - 1}, {Bound(Bounds-1) + 1, Bounds}, {math.MaxInt64, Bounds},
	} {
		var h Histogram
		h.Observe(c.took)
		d := h.Distribution()
		require.EqualValues(t, 1, d.Counts[c.want], "%v", c.took)
		require.EqualValues(t, 1, d.Count())
		require.Equal(t, c.took, d.Sum)
	}
}

func TestAQuantileLiesBetweenTheBoundsOfItsDuration(t *testing.T) {
	var h Histogram
	empty := h.Distribution()
	require.Zero(t, empty.Quantile(.5))
	for range 99 {
		h.Observe(300 * time.Microsecond)
	}
	h.Observe(time.Second)
	d := h.Distribution()
	require.InDelta(t, 384e-6, d.Quantile(.5).Seconds(), 128e-6)
	require.InDelta(t, 384e-6, d.Quantile(.99).Seconds(), 128e-6)
	require.InDelta(t, .75, d.Quantile(1).Seconds(), .3)

	h.Observe(time.Hour)
	d = h.Distribution()
	require.Equal(t, Bound(Bounds-1), d.Quantile(1), "nobody knows more of a duration above all bounds")
}

func TestWhatWasCountedBetweenTwoMomentsIsTheirDifference(t *testing.T) {
	var h Histogram
	h.Observe(time.Millisecond)
	before := h.Distribution()
	h.Observe(time.Millisecond)
	h.Observe(time.Second)
	since := h.Distribution().Since(before)
	require.EqualValues(t, 2, since.Count())
	require.Equal(t, time.Second+time.Millisecond, since.Sum)
	require.Equal(t, h.Distribution(), before.Plus(since))
}
