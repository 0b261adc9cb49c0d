package client

import (
	"sync"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// clutch keeps a carrier's connection in use, as a system call does that is stuck, until release is called.
func clutch(t *testing.T, c carrier) (release func()) {
	t.Helper()
	var conn *connection
	require.Eventually(t, func() bool {
		switch c := c.(type) {
		case *lane:
			c.mu.Lock()
			defer c.mu.Unlock()
			conn = c.conn
		case *oneShot:
			c.mu.Lock()
			defer c.mu.Unlock()
			conn = c.conn
		}
		return conn != nil
	}, tcptest.Patience, time.Millisecond)
	held, over := make(chan struct{}), make(chan struct{})
	go func() {
		_ = conn.Hold(func() {
			close(held)
			<-over
		})
	}()
	<-held
	return sync.OnceFunc(func() { close(over) })
}

func TestAStuckConnectionKeepsNobodyFromForgettingItOrClosing(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			memory, asked := tcptest.Mapped(t, 4096), make(chan struct{})
			p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
				var h wire.Header
				v.Header(&h)
				close(asked)
				v.WaitForEnd()
			}), memory)
			e := newEngine(t, way.Config)
			b := tcptest.Submit(t, e, tcptest.Ask(core.Read, tcptest.Mapped(t, 4096), tcptest.OpenSegment(t, e, p.Name), memory))
			transport, peer := transportOf(t, e), onlyPeer(t, e)
			<-asked
			release := clutch(t, peer.listed().all[0])
			t.Cleanup(release)

			tcptest.Returns(t, "RemoveLocalSegment", func() { require.NoError(t, e.RemoveLocalSegment(p.Name)) })
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, tcptest.Mapped(t, 4096), tcptest.OpenSegment(t, e, p.Name), memory)))
			tcptest.Returns(t, "Abort", transport.Abort)
			require.Len(t, peer.listed().all, 1)
			require.False(t, b.Done(), "its memory may be in use")
			tcptest.Returns(t, "End", func() {
				transport.Refuse()
				transport.End()
			})
			require.Eventually(t, func() bool { return len(transport.Stuck()) == 0 }, tcptest.Patience, time.Millisecond, "its segment was removed")
			ended := make(chan struct{})
			go func() {
				transport.Wait()
				close(ended)
			}()
			select {
			case <-ended:
				require.Fail(t, "a connection is still in use")
			default:
			}
			release()
			tcptest.Wait(t, b)
			<-ended
		})
	}
}
