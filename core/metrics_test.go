package core_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// logsThroughput has an engine write the line of MC_TE_METRIC every millisecond.
func logsThroughput() (configure func(*core.Options), lines func() []observer.LoggedEntry) {
	observed, logs := observer.New(zapcore.WarnLevel)
	return func(o *core.Options) {
		o.Log, o.Config.Metrics, o.Config.MetricsInterval = zap.New(observed), true, time.Millisecond
	}, func() []observer.LoggedEntry { return logs.FilterMessage("throughput").All() }
}

func TestThroughputIsLoggedWhileBytesMove(t *testing.T) {
	configure, lines := logsThroughput()
	e := startEngine(t, metadatatest.NewDirectory(), configure)
	var looks, bytes atomic.Uint64
	install(t, e, &transporttest.Transport{OnLinks: func() []core.Link {
		looks.Add(1)
		return []core.Link{
			{Direction: core.AsInitiator, BytesOut: bytes.Load(), Errors: 1}, {Direction: core.AsTarget, BytesIn: 1000, Errors: 2},
		}
	}})
	eventually(t, func() bool { return looks.Load() > 3 })
	before := len(lines())
	require.LessOrEqual(t, before, 1, "nothing moves but what came with the transport")

	bytes.Store(1e6)
	eventually(t, func() bool { return len(lines()) > before })
	fields := lines()[before].ContextMap()
	require.Equal(t, e.Name(), fields["engine"])
	require.InDelta(t, 1000, fields["out_MB_per_s"], 1e-6)
	require.EqualValues(t, 0, fields["in_MB_per_s"])
	require.EqualValues(t, 0, fields["errors"], "no request has failed: a connection that is lost may cost none")
	require.EqualValues(t, 2, fields["target_errors"])
}

func TestEachFailedRequestIsInTheLogAlthoughNoByteMoves(t *testing.T) {
	configure, lines := logsThroughput()
	p := startPair(t, configure)
	const batches, each = 100, 3
	for range batches {
		b := p.batch(t, each)
		require.NoError(t, p.Submit(b, p.writes(1, 2, 3), nil))
		p.transport.SettleAll(status.Errorf(status.Socket, "the peer is gone"))
		wait(t, b)
	}
	last := func() map[string]any {
		all := lines()
		if len(all) == 0 {
			return nil
		}
		return all[len(all)-1].ContextMap()
	}
	eventually(t, func() bool { return fmt.Sprint(last()["errors"]) == fmt.Sprint(batches*each) })
	require.EqualValues(t, 0, last()["out_MB_per_s"])
	eventually(t, func() bool {
		seen := uint64(0)
		for _, line := range lines() {
			seen += line.ContextMap()["batches"].(uint64)
		}
		return seen == batches // each batch is in one line
	})
}

func TestTheLineSaysHowLongBatchesTook(t *testing.T) {
	configure, lines := logsThroughput()
	p := startPair(t, configure)
	b := p.batch(t, 1)
	held := p.submit(t, b, p.writes(100)...)
	require.Never(t, func() bool { return len(lines()) > 0 }, 20*time.Millisecond, time.Millisecond, "it has not ended")
	held.SettleRest(nil)
	eventually(t, func() bool { return len(lines()) == 1 })
	fields := lines()[0].ContextMap()
	require.GreaterOrEqual(t, fields["p50_ms"], 8., "the bucket of what took 20 ms and more begins at 16 ms")
	require.GreaterOrEqual(t, fields["p99_ms"], fields["p50_ms"])
	require.EqualValues(t, 0, fields["errors"])
}
