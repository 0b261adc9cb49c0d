package core_test

import (
	"errors"
	"testing"
	"time"

	"kvferry/core"

	"github.com/stretchr/testify/require"
)

func TestProgressTellsATransferThatMovesFromOneThatStandsStill(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 2)
	held := p.submit(t, b, p.writes(1000, 3000)...)
	defer held.SettleRest(nil)
	b.Age(time.Minute)
	require.Regexp(t, `^0 of 4000 bytes .* nothing is known to have moved for 60\.\d s.* stands still$`, b.Progress().String())

	b.Age(-time.Minute)
	require.Contains(t, b.Progress().String(), "stands still", "that it has just begun is no progress")
	p.transport.Traffic.Add(7) // on the connections that it shares, before anybody looked
	held.Settle(0, 1000, nil)
	require.Equal(t, core.Progress{Moved: 1000, Total: 4000, Moving: true}, b.Progress())
	require.Regexp(t, "^1000 of 4000 bytes .* it makes progress, and needs more time$", b.Progress().String())

	b.Age(time.Minute)
	require.Contains(t, b.Progress().String(), "stands still")
	p.transport.Traffic.Add(1) // of a piece that has not arrived as a whole
	require.Contains(t, b.Progress().String(), "makes progress")
	require.Contains(t, core.ProgressOf([]*core.Batch{b}).String(), "1000 of 4000 bytes")
}

func TestBytesThatFailedHaveNotMoved(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 1)
	held := p.submit(t, b, p.writes(1000)...)
	defer held.SettleRest(nil)
	held.Settle(0, 400, errors.New("lost"))
	require.Zero(t, b.Progress().Moved)
}
