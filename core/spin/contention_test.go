package spin

import (
	"testing"
	"time"

	"kvferry/core/clock"

	"github.com/stretchr/testify/require"
)

func TestProcessorsCountAsContendedForAPauseAfterTimeWasLost(t *testing.T) {
	var c Contention
	at := time.Hour
	require.False(t, c.Holds(at))
	c.note(at)
	require.True(t, c.Holds(at))
	require.True(t, c.Holds(at+firstPause-1))
	require.False(t, c.Holds(at+firstPause))
}

func TestPausesGrowWhileTimeIsLostAfterEachAndAreBounded(t *testing.T) {
	var c Contention
	at := time.Hour
	for want := firstPause; want < 4*maxPause; want *= 2 {
		c.note(at)
		pause := min(want, maxPause)
		require.False(t, c.Holds(at+pause))
		require.True(t, c.Holds(at+pause-1))
		at += pause
	}
}

func TestThePauseIsShortAgainAfterALongTimeWithoutLoss(t *testing.T) {
	var c Contention
	at := time.Hour
	for range 10 {
		c.note(at)
		at += maxPause
	}
	at += time.Hour
	c.note(at)
	require.False(t, c.Holds(at+firstPause))
}

func TestThreadsThatLoseTimeInAPauseDoNotProlongIt(t *testing.T) {
	var c Contention
	at := time.Hour
	c.note(at)
	c.note(at + firstPause/2)
	require.False(t, c.Holds(at+firstPause))
}

func TestAYieldThatTookLongBeginsAPause(t *testing.T) {
	var c Contention
	require.True(t, c.measure(clock.Now()+time.Hour), "as if no time had passed")
	require.False(t, c.Holds(clock.Now()))
	before := clock.Now()
	require.False(t, c.measure(before-lostTime))
	require.True(t, c.Holds(before+firstPause-1))
}

func TestNoYieldIsMadeWhileTheProcessorsAreContended(t *testing.T) {
	c := contended()
	require.False(t, c.Yield(clock.Now()))
	require.False(t, c.YieldPlace(clock.Now()))
}

func TestWithoutContentionToMeasureEveryYieldIsMade(t *testing.T) {
	var c *Contention
	require.False(t, c.Holds(clock.Now()))
	require.True(t, c.Yield(clock.Now()))
	require.True(t, c.YieldPlace(clock.Now()-lostTime))
}

// contended are processors that count as contended for longer than a test lasts.
func contended() *Contention {
	c := &Contention{}
	c.HoldUntil(clock.Now() + time.Hour)
	return c
}

func TestASpinnerDoesNotSpinWhileTheProcessorsAreContended(t *testing.T) {
	s := Spinner{Contention: contended()}
	require.False(t, s.SpinBriefly(time.Hour, func() bool { return true }))
	s.Contention = &Contention{}
	require.True(t, s.SpinBriefly(time.Hour, func() bool { return true }))
}

func TestASpinnerThatIsToldToPollDoesSoOnContendedProcessors(t *testing.T) {
	s := Spinner{Contention: contended(), Polling: time.Hour}
	calls := 0
	require.True(t, s.Spin(0, func() bool { calls++; return calls == 3 }, nil))
}

func TestASpinThatFindsTheProcessorsContendedEnds(t *testing.T) {
	calls := 0
	require.False(t, Until(time.Hour, contended(), func() bool { calls++; return false }))
	require.Equal(t, 2, calls, "before and after the yield")
}

func TestOnContendedProcessorsAThreadSleepsForWhatIsExpected(t *testing.T) {
	s := Spinner{Contention: contended()}
	slept := 0
	found := func() bool { return slept == 3 }
	require.True(t, s.Spin(time.Hour, found, func(most time.Duration) bool {
		require.Positive(t, most)
		require.LessOrEqual(t, most, sleepStep)
		slept++
		return true
	}))
	require.Equal(t, 3, slept)
}

func TestAThreadThatMayNotSleepLeavesTheWaitToThePoller(t *testing.T) {
	s := Spinner{Contention: contended()}
	require.False(t, s.Spin(time.Hour, func() bool { return false }, func(time.Duration) bool { return false }))
}

func TestAThreadThatSleepsInVainSleepsEverMoreRarely(t *testing.T) {
	s := Spinner{Contention: contended()}
	slept := 0
	for range 100 {
		s.Spin(time.Hour, func() bool { return false }, func(time.Duration) bool { slept++; return false })
	}
	require.Less(t, slept, 10)
	require.Positive(t, slept)
}

func TestASpinThatFindsTheProcessorsContendedGoesOnAsleep(t *testing.T) {
	s := Spinner{Contention: &Contention{}}
	slept := false
	lose := func() bool {
		s.Contention.HoldUntil(clock.Now() + time.Hour)
		return slept
	}
	require.True(t, s.Spin(time.Hour, lose, func(time.Duration) bool { slept = true; return true }))
}

func TestNobodySleepsWhereProcessorsAreNotContended(t *testing.T) {
	var s Spinner
	require.False(t, s.Spin(time.Microsecond, func() bool { return false }, func(time.Duration) bool {
		t.Error("it has slept")
		return true
	}))
}
