package core

import (
	"testing"
	"time"

	"kvferry/core/trace"

	"github.com/stretchr/testify/require"
)

func TestTheTraceIsToldOfTheOldestBatchesUnderWayThatItHasNotRecorded(t *testing.T) {
	var e Engine
	for _, b := range []*Batch{
		{id: 1, began: 30}, {id: 2, began: 10}, {id: 3, began: 20}, {id: 4}, {id: 5, began: 5, trace: new(trace.Batch)},
	} {
		e.batches.Store(b.id, b)
	}
	second, third := trace.UnderWay{Number: 2, Began: 10}, trace.UnderWay{Number: 3, Began: 20}
	require.Equal(t, []trace.UnderWay{second, third}, e.unrecorded(2))
	require.Equal(t, []trace.UnderWay{second, third, {Number: 1, Began: 30 * time.Nanosecond}}, e.unrecorded(9))
}
