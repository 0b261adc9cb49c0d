package address

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestEveryPortOfTheRangeIsTriedOnce(t *testing.T) {
	tried := slices.Sorted(shuffled(15000, 17000))
	assert.Equal(t, 15000, tried[0])
	assert.Len(t, slices.Compact(tried), 2001)
	assert.Equal(t, []int{7}, slices.Collect(shuffled(7, 7)))
}

func TestPortsAreTriedInAnotherOrderEachTime(t *testing.T) {
	assert.NotEqual(t, slices.Collect(shuffled(15000, 15100)), slices.Collect(shuffled(15000, 15100)))
}
