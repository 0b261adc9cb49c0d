package clock

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStepsAreOverAfterAsManyHowEverMuchTimeHasPassed(t *testing.T) {
	calls := 0
	s := AfterSteps(time.Hour, func() { calls++ })
	for range steps - 1 {
		s.pass() // the process was stopped, and the time of all steps is over
	}
	require.Zero(t, calls)
	s.pass()
	require.Equal(t, 1, calls)
}

func TestStepsThatAreStoppedCallNothing(t *testing.T) {
	s := AfterSteps(time.Hour, func() { t.Error("called") })
	for range steps - 1 {
		s.pass()
	}
	s.Stop()
	s.pass() // it was about to
}

func TestStepsComeToAnEndByThemselves(t *testing.T) {
	called := make(chan struct{})
	AfterSteps(time.Millisecond, func() { close(called) })
	<-called
}
