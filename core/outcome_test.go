package core_test

import (
	"net"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/metrics"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

func TestAnOutcomeHasWhenAndHowTheBytesWent(t *testing.T) {
	p := startPair(t, nil)
	before := time.Now()
	b, err := p.Start(towards(p.peer.Name(), 16, 32))
	require.NoError(t, err)
	o := b.Outcome()
	require.WithinRange(t, o.Began, before.Add(-time.Microsecond), time.Now())
	require.Zero(t, o.Ended)
	require.Equal(t, 2, o.Requests)
	require.Empty(t, o.Address)

	work := p.transport.Held()[0]
	work.Segment.NoteAddress(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 4711})
	work.Went(metrics.Host)
	work.Went(metrics.Host)
	p.transport.SettleAll(nil)
	o = b.Outcome()
	require.False(t, o.Ended.Before(o.Began))
	require.True(t, o.Ways.Has(metrics.Host))
	require.False(t, o.Ways.Has(metrics.TCP) || o.Ways.Has(metrics.Local))
	require.Equal(t, "10.0.0.7:4711", o.Address)
	require.Empty(t, o.Trace, "tracing is off")
}

func TestTheOutcomeOfATransferThatNeverHadAPeerHasItsTimes(t *testing.T) {
	p := startPair(t, nil)
	b, err := p.Start(towards("127.0.0.1:1", 16, 16))
	require.NoError(t, err)
	wait(t, b)
	o := b.Outcome()
	require.Error(t, b.Err())
	require.False(t, o.Began.IsZero() || o.Ended.Before(o.Began))
	require.Equal(t, 2, o.Requests)
	require.Equal(t, core.Ways(0), o.Ways)
}

func TestTheOutcomeOfAStagedTransferHasTheWayOfItsChunks(t *testing.T) {
	p := startStaged(t, &transporttest.Transport{}, nil)
	b := p.batch(t, 1)
	require.NoError(t, p.Submit(b, []core.Request{{Opcode: core.Read, Local: at(p.memory(0, 4096)), Target: p.segment, Length: 4096}}, nil))
	h := p.arrival()
	h.Went(metrics.TCP)
	h.SettleRest(nil)
	wait(t, b)
	require.True(t, b.Outcome().Ways.Has(metrics.TCP))
}
