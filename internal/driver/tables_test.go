package driver_test

import (
	"math"
	"testing"
	"time"

	"kvferry/internal/driver"

	"github.com/stretchr/testify/require"
)

func TestWhatIsNoTimeIsNone(t *testing.T) {
	for ms, want := range map[float32]time.Duration{
		1.5: 1500 * time.Microsecond, 0: 0, -1: 0, float32(math.Inf(-1)): 0, float32(math.Inf(1)): 24 * time.Hour, 1e30: 24 * time.Hour,
	} {
		require.Equal(t, want, driver.Milliseconds(ms), ms)
	}
	require.Zero(t, driver.Milliseconds(float32(math.NaN())))
}
