package client

import (
	"testing"

	"kvferry/core"
	"kvferry/core/metrics"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

func TestAConnectionThatBreaksCostsRetriesAndNoFailure(t *testing.T) {
	near, far := tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 1<<16)
	p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
		var h wire.Header
		v.Header(&h)
	}), far)
	e := newEngine(t, tcptest.OneLane)
	id := tcptest.OpenSegment(t, e, p.Name)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, near[:700], id, far[:700])))
	s := e.Stats().Initiator[0]
	require.EqualValues(t, 1, s.Retries)
	require.EqualValues(t, 1, s.Lost)
	require.EqualValues(t, 2, s.Connected)
	require.Zero(t, s.Unreachable)
	require.Empty(t, s.Failures)
	require.EqualValues(t, 700, s.Read.Bytes["tcp"])
}

func TestWhatIsQueuedAndInFlightIsTold(t *testing.T) {
	near, far := tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 1<<16)
	goOn := make(chan struct{})
	p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
		var h wire.Header
		v.Header(&h)
		<-goOn
	}), far)
	e := newEngine(t, tcptest.OneLane)
	id := tcptest.OpenSegment(t, e, p.Name)
	b := tcptest.Submit(t, e, tcptest.Ask(core.Read, near[:700], id, far[:700]))
	require.Eventually(t, func() bool {
		s := e.Stats().Initiator[0]
		return s.InFlight == 700 && s.Queued == 0 && s.Connections == (metrics.Connections{Busy: 1})
	}, tcptest.Patience, tcptest.Patience/1000)
	require.Equal(t, metrics.Unfinished{Batches: 1, Requests: 1, Bytes: 700}, e.Stats().Unfinished)
	close(goOn)
	tcptest.Completes(t, b)
	require.Zero(t, e.Stats().Initiator[0].InFlight)
}
