package spin

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestASpinnerThatFailsSpinsEverMoreRarely(t *testing.T) {
	var s Spinner
	spun := 0
	for range 100 {
		before := spun
		s.Spin(time.Microsecond, func() bool { spun = before + 1; return false }, nil)
	}
	require.Less(t, spun, 10)
	require.Positive(t, spun)
}

func TestASpinnerThatSucceedsGoesOnSpinning(t *testing.T) {
	var s Spinner
	for range 100 {
		require.True(t, s.Spin(time.Hour, func() bool { return true }, nil))
	}
}

func TestASpinnerThatMostlySucceedsToleratesLateAnswers(t *testing.T) {
	var s Spinner
	for range 100 {
		s.Spin(time.Hour, func() bool { return true }, nil)
	}
	for range maxCredit {
		spun := false
		s.Spin(time.Microsecond, func() bool { spun = true; return false }, nil)
		require.True(t, spun)
	}
	require.True(t, s.Spin(time.Hour, func() bool { return true }, nil))
}

func TestPollingForSomethingLongLastsForAMoment(t *testing.T) {
	s := Spinner{Polling: time.Hour}
	require.False(t, s.SpinBriefly(time.Microsecond, func() bool { return false }))
}
