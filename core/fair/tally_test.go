package fair

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestATallyReportsOncePerPeriodAndLosesNoCount(t *testing.T) {
	tally := Tally{Period: 10 * time.Second}
	begun := time.Now()
	var counts []int
	for second := range 25 {
		if count, report := tally.add(begun.Add(time.Duration(second) * time.Second)); report {
			counts = append(counts, count)
		}
	}
	require.Equal(t, []int{1, 10, 10}, counts)
}
