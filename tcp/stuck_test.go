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

// returns fails the test when f does not return.
func returns(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(tcptest.Patience):
		require.Fail(t, what+" does not return")
	}
}

func TestASessionThatWasEndedWhileItWasStuckServesNothingThatItHasRead(t *testing.T) {
	source, memory, other := hostmemtest.New(t, 4096), tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	h := serve(t, targetOptions{}, memory, other)
	c := h.dialNeighbour()
	c.send(writeByAddress(sockio.AddressOf(memory), source.Memory),
		writeV2(sockio.AddressOf(memory), tcptest.Pattern(100, 1)), // what is to be fetched for the same place is fetched first
		writeV2(sockio.AddressOf(other), tcptest.Pattern(100, 1)))
	source.AwaitFault(t)
	held, free := h.memory.regions[0], h.memory.regions[1]

	returns(t, "evict", func() { h.target.evict(held) })
	require.Equal(t, []string{fmt.Sprintf("a transfer of process %d", os.Getpid())}, h.target.holders(held))
	require.Empty(t, h.target.holders(free))
	require.Equal(t, []string{fmt.Sprintf("one from process %d, memory %v", os.Getpid(), held.Range)}, h.target.stuck())

	source.Release(t)
	h.waitForSessions(0)
	require.Equal(t, make([]byte, 100), other[:100], "a request was served after the session had been ended")
	require.Empty(t, h.target.holders(held))
}

func TestUnregisterOfMemoryThatAStuckCopyWritesFailsAndTheEngineGoesOn(t *testing.T) {
	target, e, memory, local, id := neighbours(t, 64<<10)
	other, bystander := tcptest.Mapped(t, 64<<10), engine(t, onOneHost)
	require.NoError(t, target.Register(sockio.AddressOf(other), uint64(len(other)), "cpu:0", true))
	theirs := open(t, bystander, target.Name())
	source := hostmemtest.New(t, 8192)
	hostmem.Now().Note(sockio.AddressOf(source.Memory), 8192, hostmem.Reading) // it was there a moment ago
	stuck := submit(t, e, ask(core.Write, source.Memory, id, memory))
	source.AwaitFault(t)

	unregistered := make(chan error, 1)
	go func() { unregistered <- target.Unregister(sockio.AddressOf(memory)) }()
	for range 10 {
		completes(t, submit(t, bystander, ask(core.Write, local, theirs, other), ask(core.Read, local, theirs, other)))
	}
	err := <-unregistered
	require.ErrorIs(t, err, core.ErrInUse)
	require.Equal(t, status.BatchBusy, status.Of(err, -1))
	require.ErrorContains(t, err, fmt.Sprintf("%#x+%d by a transfer of process %d", sockio.AddressOf(memory), len(memory), os.Getpid()))
	require.Error(t, target.Register(sockio.AddressOf(memory), 4096, "cpu:0", true))
	completes(t, submit(t, bystander, ask(core.Write, local, theirs, other)))

	source.Release(t)
	require.NoError(t, target.Unregister(sockio.AddressOf(memory)))
	require.NoError(t, target.Register(sockio.AddressOf(memory), 4096, "cpu:0", true))
	require.NoError(t, e.DiscardBatch(stuck))
}

func TestCloseWithAStuckCopyNamesItAndEndsAllElse(t *testing.T) {
	target, e, memory, local, id := neighbours(t, 64<<10)
	other := engine(t, onOneHost)
	source := hostmemtest.New(t, 8192)
	hostmem.Now().Note(sockio.AddressOf(source.Memory), 8192, hostmem.Reading) // it was there a moment ago
	stuck := submit(t, e, ask(core.Write, source.Memory, id, memory))
	source.AwaitFault(t)
	completes(t, submit(t, other, ask(core.Read, local, open(t, other, target.Name()), memory)))

	transport := transportOf(t, target)
	transport.ending = 10 * time.Millisecond
	for range 2 {
		var err error
		returns(t, "Close", func() { err = transport.Close() })
		require.ErrorIs(t, err, core.ErrInUse)
		require.ErrorContains(t, err, fmt.Sprintf("one from process %d, memory %#x+%d", os.Getpid(), sockio.AddressOf(memory), len(memory)))
	}
	require.Eventually(t, func() bool { return len(transport.target.links()) > 0 && connections(transport) == 1 }, tcptest.Patience, time.Millisecond)
	source.Release(t)
	transport.ending = time.Minute
	require.NoError(t, transport.Close())
	require.NoError(t, target.Close())
	require.NoError(t, e.DiscardBatch(stuck))
}

// connections is how many there are to a transport's target.
func connections(t *Transport) (n int) {
	for _, link := range t.target.links() {
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
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			memory, asked := tcptest.Mapped(t, 4096), make(chan struct{})
			p := perform(t, 2, atFirst(1, func(v *visitor, _ int) {
				var h wire.Header
				v.header(&h)
				close(asked)
				v.waitForEnd()
			}), memory)
			e := engine(t, way.config)
			b := submit(t, e, ask(core.Read, tcptest.Mapped(t, 4096), open(t, e, p.name), memory))
			transport, peer := transportOf(t, e), onlyPeer(t, e)
			transport.ending = 10 * time.Millisecond
			<-asked
			release := clutch(t, peer.listed()[0])
			t.Cleanup(release)

			returns(t, "RemoveLocalSegment", func() { require.NoError(t, e.RemoveLocalSegment(p.name)) })
			completes(t, submit(t, e, ask(core.Read, tcptest.Mapped(t, 4096), open(t, e, p.name), memory)))
			returns(t, "Abort", transport.Abort)
			require.Len(t, peer.listed(), 1)
			require.False(t, b.Done(), "its memory may be in use")
			returns(t, "Close", func() {
				err := transport.Close()
				require.ErrorIs(t, err, core.ErrInUse)
				require.ErrorContains(t, err, "segments that were removed")
			})
			release()
			wait(t, b)
			transport.ending = time.Minute
			require.NoError(t, transport.Close())
		})
	}
}
