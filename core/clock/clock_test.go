package clock

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestClocksNeverGoBack(t *testing.T) {
	for name, read := range map[string]func() int64{
		"Now":             func() int64 { return int64(Now()) },
		"SinceBoot":       func() int64 { return int64(SinceBoot()) },
		"AtMostSinceBoot": func() int64 { return int64(AtMostSinceBoot()) },
	} {
		last := int64(1)
		for range 1000 {
			now := read()
			require.GreaterOrEqual(t, now, last, name)
			last = now
		}
	}
}

func TestTheTimeSinceBootWithoutASystemCallIsNeverTooLate(t *testing.T) {
	for range 1000 {
		exact := SinceBoot()
		cheap := AtMostSinceBoot()
		require.GreaterOrEqual(t, cheap, exact, "the machine was not suspended meanwhile")
		require.LessOrEqual(t, cheap, SinceBoot())
	}
}

func TestTheDifferenceOfTheClocksIsNeverTooLargeAndGetsMoreExact(t *testing.T) {
	last := Ahead()
	for range 1000 {
		now := Now()
		atMost := SinceBoot() - now // read in this order it is too large, if anything
		found := Ahead()
		require.GreaterOrEqual(t, found, last)
		require.LessOrEqual(t, found, atMost)
		last = found
	}
}

func TestADateIsThatOfTheSameMomentByTheClock(t *testing.T) {
	for range 1000 {
		before := Now()
		now, date := NowAndDate()
		require.GreaterOrEqual(t, now, before)
		require.LessOrEqual(t, now, Now())
		require.Equal(t, now, date.Sub(start))
	}
}

func TestALessExactDifferenceOfTheClocksIsNotKept(t *testing.T) {
	before := ahead.Load()
	noteAhead(before - 1)
	require.GreaterOrEqual(t, ahead.Load(), before)
}
