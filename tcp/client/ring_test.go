package client

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestQueueIsFirstInFirstOutWhileItGrowsAndWraps(t *testing.T) {
	var q ring[int]
	var model []int
	for i := range 20_000 {
		if rand.IntN(100) < 52 || len(model) == 0 {
			q.push(i)
			model = append(model, i)
		} else {
			require.Equal(t, model[0], q.pop())
			model = model[1:]
		}
		require.Equal(t, len(model), q.len())
		if len(model) > 0 {
			at := rand.IntN(len(model))
			require.Equal(t, model[at], *q.at(at))
		}
	}
}

func TestQueueKeepsItsMemoryAndNothingThatWasTaken(t *testing.T) {
	var q ring[*int]
	for range 1000 {
		q.push(new(int))
		q.push(new(int))
		q.pop()
		q.pop()
	}
	require.LessOrEqual(t, len(q.items), 16)
	for _, item := range q.items {
		require.Nil(t, item)
	}
}
