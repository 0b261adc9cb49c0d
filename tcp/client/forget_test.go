package client

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

func TestWorkThatIsSubmittedAfterItsSegmentWasRemovedMakesNoPeer(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	p := tcptest.Perform(t, 2, tcptest.ServeWell, memory)
	e := newEngine(t)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, tcptest.Mapped(t, 4096), tcptest.OpenSegment(t, e, p.Name), memory)))
	transport, segment := transportOf(t, e), onlyPeer(t, e).segment
	require.NoError(t, e.RemoveLocalSegment(p.Name))
	_, err := transport.peer(segment) // as a Submit does that has looked the segment up before
	require.ErrorContains(t, err, "was removed")
	require.Empty(t, transport.allPeers())
}

func TestSubmitRacesWithRemovingTheSegment(t *testing.T) {
	memory := tcptest.Mapped(t, 64<<10)
	p := tcptest.Perform(t, 2, tcptest.ServeWell, memory)
	e := newEngine(t, tcptest.FewRetries)
	const rounds = 2000
	var submitted atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		local := tcptest.Mapped(t, 64<<10)
		all.Go(func() {
			for submitted.Add(1) < rounds {
				id, err := e.OpenSegment(p.Name)
				require.NoError(t, err)
				b, err := e.AllocateBatch(3)
				require.NoError(t, err)
				if e.Submit(b, tcptest.Scattered(core.Read, local, id, memory, 3, 8000), nil) == nil { // it may have been removed
					tcptest.Wait(t, b) // a task that is lost never ends
				}
				require.NoError(t, e.FreeBatch(b), "a task that is settled twice is unfinished ever after")
			}
		})
	}
	for submitted.Load() < rounds {
		require.NoError(t, e.RemoveLocalSegment(p.Name))
		runtime.Gosched()
	}
	all.Wait()
	require.NoError(t, e.RemoveLocalSegment(p.Name))
	require.Empty(t, transportOf(t, e).allPeers())
}
