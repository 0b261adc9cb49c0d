package core_test

import (
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestThroughputIsLoggedWhileBytesMove(t *testing.T) {
	observed, logs := observer.New(zapcore.WarnLevel)
	e := startEngine(t, metadatatest.NewDirectory(), func(o *core.Options) {
		o.Log, o.Config.Metrics, o.Config.MetricsInterval = zap.New(observed), true, time.Millisecond
	})
	var looks, bytes atomic.Uint64
	install(t, e, &transporttest.Transport{OnLinks: func() []core.Link {
		looks.Add(1)
		return []core.Link{{BytesOut: bytes.Load(), Errors: 1}, {BytesIn: 1000, Errors: 2}}
	}})
	eventually(t, func() bool { return looks.Load() > 3 })
	lines := func() []observer.LoggedEntry { return logs.FilterMessage("throughput").All() }
	before := len(lines())
	require.LessOrEqual(t, before, 1, "nothing moves but what came with the transport")

	bytes.Store(1e6)
	eventually(t, func() bool { return len(lines()) > before })
	fields := lines()[before].ContextMap()
	require.InDelta(t, 1000, fields["out_MB_per_s"], 1e-6)
	require.EqualValues(t, 0, fields["in_MB_per_s"])
	require.EqualValues(t, 3, fields["errors"])
	require.Equal(t, []core.Link{{BytesOut: 1e6, Errors: 1}, {BytesIn: 1000, Errors: 2}}, e.Links())
}
