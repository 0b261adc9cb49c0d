package tcp

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/hostmem/hostmemtest"
	"kvferry/core/status"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

func TestUnregisterOfMemoryThatAStuckCopyWritesFailsAndTheEngineGoesOn(t *testing.T) {
	target, e, memory, local, id := neighbours(t, 64<<10)
	other, bystander := tcptest.Mapped(t, 64<<10), newEngine(t, tcptest.OnOneHost)
	require.NoError(t, target.Register(sockio.AddressOf(other), uint64(len(other)), "cpu:0", true))
	theirs := tcptest.OpenSegment(t, bystander, target.Name())
	source := hostmemtest.New(t, 8192)
	hostmem.Now().Note(sockio.AddressOf(source.Memory), 8192, hostmem.Reading) // it was there a moment ago
	stuck := tcptest.Submit(t, e, tcptest.Ask(core.Write, source.Memory, id, memory))
	source.AwaitFault(t)

	unregistered := make(chan error, 1)
	go func() { unregistered <- target.Unregister(sockio.AddressOf(memory)) }()
	for range 10 {
		tcptest.Completes(t, tcptest.Submit(t, bystander, tcptest.Ask(core.Write, local, theirs, other), tcptest.Ask(core.Read, local, theirs, other)))
	}
	err := <-unregistered
	require.ErrorIs(t, err, core.ErrInUse)
	require.Equal(t, status.BatchBusy, status.Of(err, -1))
	require.ErrorContains(t, err, fmt.Sprintf("%#x+%d by a transfer of process %d", sockio.AddressOf(memory), len(memory), os.Getpid()))
	require.Error(t, target.Register(sockio.AddressOf(memory), 4096, "cpu:0", true))
	tcptest.Completes(t, tcptest.Submit(t, bystander, tcptest.Ask(core.Write, local, theirs, other)))

	source.Release(t)
	require.NoError(t, target.Unregister(sockio.AddressOf(memory)))
	require.NoError(t, target.Register(sockio.AddressOf(memory), 4096, "cpu:0", true))
	require.NoError(t, e.DiscardBatch(stuck))
}

func TestCloseWithAStuckCopyNamesItAndEndsAllElse(t *testing.T) {
	target, e, memory, local, id := neighbours(t, 64<<10)
	other := newEngine(t, tcptest.OnOneHost)
	source := hostmemtest.New(t, 8192)
	hostmem.Now().Note(sockio.AddressOf(source.Memory), 8192, hostmem.Reading) // it was there a moment ago
	stuck := tcptest.Submit(t, e, tcptest.Ask(core.Write, source.Memory, id, memory))
	source.AwaitFault(t)
	tcptest.Completes(t, tcptest.Submit(t, other, tcptest.Ask(core.Read, local, tcptest.OpenSegment(t, other, target.Name()), memory)))

	transport := transportOf(t, target)
	transport.ending = 10 * time.Millisecond
	for range 2 {
		var err error
		tcptest.Returns(t, "Close", func() { err = transport.Close() })
		require.ErrorIs(t, err, core.ErrInUse)
		require.ErrorContains(t, err, fmt.Sprintf("one from process %d, memory %#x+%d", os.Getpid(), sockio.AddressOf(memory), len(memory)))
	}
	require.Eventually(t, func() bool { return len(transport.target.Links()) > 0 && connections(transport) == 1 }, tcptest.Patience, time.Millisecond)
	source.Release(t)
	transport.ending = time.Minute
	require.NoError(t, transport.Close())
	require.NoError(t, target.Close())
	require.NoError(t, e.DiscardBatch(stuck))
}

// connections is how many there are to a transport's target.
func connections(t *Transport) (n int) {
	for _, link := range t.target.Links() {
		n += link.Connections
	}
	return n
}

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
		_ = conn.Hold(func(uintptr) {
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
			transport.ending = 10 * time.Millisecond
			<-asked
			release := clutch(t, peer.listed()[0])
			t.Cleanup(release)

			tcptest.Returns(t, "RemoveLocalSegment", func() { require.NoError(t, e.RemoveLocalSegment(p.Name)) })
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, tcptest.Mapped(t, 4096), tcptest.OpenSegment(t, e, p.Name), memory)))
			tcptest.Returns(t, "Abort", transport.Abort)
			require.Len(t, peer.listed(), 1)
			require.False(t, b.Done(), "its memory may be in use")
			tcptest.Returns(t, "Close", func() {
				err := transport.Close()
				require.ErrorIs(t, err, core.ErrInUse)
				require.ErrorContains(t, err, "segments that were removed")
			})
			release()
			tcptest.Wait(t, b)
			transport.ending = time.Minute
			require.NoError(t, transport.Close())
		})
	}
}
