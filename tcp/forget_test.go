package tcp

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
	p := perform(t, 2, serveWell, memory)
	e := engine(t)
	completes(t, submit(t, e, ask(core.Read, tcptest.Mapped(t, 4096), open(t, e, p.name), memory)))
	transport, segment := transportOf(t, e), onlyPeer(t, e).segment
	require.NoError(t, e.RemoveLocalSegment(p.name))
	_, err := transport.peer(segment) // as a Submit does that has looked the segment up before
	require.ErrorContains(t, err, "was removed")
	require.Empty(t, transport.allPeers())
}

func TestSubmitRacesWithRemovingTheSegment(t *testing.T) {
	memory := tcptest.Mapped(t, 64<<10)
	p := perform(t, 2, serveWell, memory)
	e := engine(t, fewRetries)
	const rounds = 2000
	var submitted atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		local := tcptest.Mapped(t, 64<<10)
		all.Go(func() {
			for submitted.Add(1) < rounds {
				id, err := e.OpenSegment(p.name)
				require.NoError(t, err)
				b, err := e.AllocateBatch(3)
				require.NoError(t, err)
				if e.Submit(b, scattered(core.Read, local, id, memory, 3, 8000), nil) == nil { // it may have been removed
					wait(t, b) // a task that is lost never ends
				}
				require.NoError(t, e.FreeBatch(b), "a task that is settled twice is unfinished ever after")
			}
		})
	}
	for submitted.Load() < rounds {
		require.NoError(t, e.RemoveLocalSegment(p.name))
		runtime.Gosched()
	}
	all.Wait()
	require.NoError(t, e.RemoveLocalSegment(p.name))
	require.Empty(t, transportOf(t, e).allPeers())
}
