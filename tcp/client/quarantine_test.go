package client

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// slowFirst is a peer, as Mooncake is one, that takes a WRITE on its first connection and does nothing with it before the
// test closes goOn. Then it applies what has come, to the end of the connection.
func slowFirst(begun, goOn chan struct{}) tcptest.Script {
	return func(v *tcptest.Visitor, n int) {
		var h wire.Header
		if n > 0 || !v.Header(&h) {
			tcptest.ServeWell(v, n)
			return
		}
		close(begun)
		<-goOn
		for more := v.Obey(h); more && v.Header(&h); {
			more = v.Obey(h)
		}
	}
}

func TestAWriteWaitsUntilTheTargetHasDoneWithAGivenUpOneToTheSamePlace(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			old, fresh, far := tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 2<<16)
			tcptest.Fill(old, 1)
			tcptest.Fill(fresh, 2)
			begun, goOn := make(chan struct{}), make(chan struct{})
			p := tcptest.Perform(t, 2, slowFirst(begun, goOn), far)
			e := newEngine(t, way.Config, tcptest.OneLane)
			id := tcptest.OpenSegment(t, e, p.Name)
			given := tcptest.Submit(t, e, tcptest.Ask(core.Write, old, id, far[:1<<16]))
			<-begun
			require.NoError(t, e.DiscardBatch(given))

			later := tcptest.Submit(t, e, tcptest.Ask(core.Write, fresh, id, far[:1<<16]))
			// Neither other places nor READs wait.
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, fresh, id, far[1<<16:])))
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, make([]byte, 10), id, far[:10])))
			require.False(t, later.Done())
			close(goOn)
			tcptest.Completes(t, later)
			require.True(t, bytes.Equal(fresh, far[:1<<16]))
			require.Zero(t, transportOf(t, e).fence.quarantines.busy.Load())
		})
	}
}

func TestAConnectionIsNotReadToItsEndOnceTheEngineIsClosed(t *testing.T) {
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) { <-v.Peer.T.Context().Done() })
	config := core.DefaultConfig()
	client := New(Options{Config: &config, Processors: testProcessors})
	client.cancel()
	peer := newPeer(client, &core.Segment{})
	for range 300 { // the end of the transport and the start of the reading may come in either order
		conn := connectTo(t, p)
		conn.peer = peer
		tcptest.Returns(t, "linger", func() { client.fence.lingerUntilPeerDone(conn, &connectionEnd{target: "target"}) })
	}
}

func TestAConnectionThatBothSidesHaveEndedBeforeItIsReadToItsEndIsOver(t *testing.T) {
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) { v.WaitForEnd() })
	config := core.DefaultConfig()
	client := New(Options{Config: &config, Processors: testProcessors})
	defer client.cancel()
	peer := newPeer(client, &core.Segment{})
	conn, end := connectTo(t, p), &connectionEnd{target: "target"}
	conn.peer = peer
	require.NoError(t, conn.CloseWrite())
	require.Eventually(t, func() bool { return errors.Is(conn.CloseWrite(), unix.ENOTCONN) }, tcptest.Patience, time.Millisecond)
	tcptest.Returns(t, "linger", func() { client.fence.lingerUntilPeerDone(conn, end) })
	require.False(t, end.unknown)
}

// connectTo is a connection to a peer's data port.
func connectTo(t testing.TB, p *tcptest.Scripted) *connection {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, p.Port.Addr().(*net.TCPAddr))
	require.NoError(t, err)
	return &connection{Socket: socketOf(t, conn)}
}

func TestAWriteThatWaitsForTooLongFailsAndSaysWhy(t *testing.T) {
	old, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	begun, goOn := make(chan struct{}), make(chan struct{})
	defer close(goOn)
	p := tcptest.Perform(t, 2, slowFirst(begun, goOn), far)
	e := newEngine(t, tcptest.OneLane, func(c *core.Config) { c.StatusTimeout = 300 * time.Millisecond })
	id := tcptest.OpenSegment(t, e, p.Name)
	given := tcptest.Submit(t, e, tcptest.Ask(core.Write, old, id, far))
	<-begun
	require.NoError(t, e.DiscardBatch(given))
	b := tcptest.Submit(t, e, tcptest.Ask(core.Write, old, id, far))
	tcptest.FailsOnly(t, b, 0)
	require.ErrorIs(t, b.Err(), errFormerWrite)
	require.ErrorContains(t, b.Err(), "MC_TCP_STATUS_TIMEOUT_SEC")
	b = tcptest.Submit(t, e, tcptest.Ask(core.Write, old, id, far))
	require.NoError(t, e.DiscardBatch(b), "what waits can be given up")
}

// A middlebox resets a connection: nobody can know whether the target has done with it.
func TestAfterAResetTheSameWriteIsRepeatedAndOthersToItsPlaceFail(t *testing.T) {
	for _, way := range tcptest.Ways[:2] {
		t.Run(way.Name, func(t *testing.T) {
			old, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 8192)
			tcptest.Fill(old, 1)
			p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
				var h wire.Header
				v.Header(&h)
				v.Reset()
			}), far)
			e := newEngine(t, way.Config, tcptest.OneLane)
			id := tcptest.OpenSegment(t, e, p.Name)
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, old, id, far[:4096])))
			require.True(t, bytes.Equal(old, far[:4096]))

			b := tcptest.Submit(t, e, tcptest.Ask(core.Write, old[:100], id, far[1000:1100]), tcptest.Ask(core.Write, old, id, far[4096:]))
			tcptest.FailsOnly(t, b, 0)
			require.ErrorIs(t, b.Err(), errFormerWrite)
			require.ErrorContains(t, b.Err(), "no orderly end")
		})
	}
}

func TestAWriteToAKvferryTargetWaitsForTheFormerSessionHoweverItsConnectionEnded(t *testing.T) {
	for _, way := range tcptest.Ways {
		for _, lost := range []bool{false, true} {
			old, fresh, far := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
			tcptest.Fill(old, 1)
			tcptest.Fill(fresh, 2)
			target, e := newEngine(t), newEngine(t, way.Config, tcptest.OneLane)
			require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
			id := tcptest.OpenSegment(t, e, target.Name())
			for range 20 {
				b := tcptest.Submit(t, e, tcptest.Ask(core.Write, old, id, far))
				if lost {
					killOne(transportOf(t, target))
				}
				require.NoError(t, e.DiscardBatch(b))
				tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, fresh, id, far)))
				require.True(t, bytes.Equal(fresh, far))
				clear(far)
			}
			require.Eventually(t, func() bool { return transportOf(t, e).fence.quarantines.busy.Load() == 0 }, tcptest.Patience, time.Millisecond)
		}
	}
}

func TestAQuarantineIsBounded(t *testing.T) {
	var q quarantines
	work := workOf(write(0x1000, 0x10000, 1))
	end := &connectionEnd{target: "target", where: "somewhere"}
	pieces := make([]piece, 1000)
	for round := range uint64(20) {
		for i := range pieces {
			pieces[i] = piece{op: core.Write, work: work, remote: round<<20 + uint64(i)<<4, length: 8}
		}
		q.add(pieces, end)
		q.giveUp(end)
	}
	require.LessOrEqual(t, len(q.byTarget["target"].ranges), maxRanges)
	require.EqualValues(t, len(q.byTarget["target"].ranges), q.busy.Load())
	other := piece{op: core.Write, work: workOf(write(0x1000, 0x10000, 1)), remote: 3<<20 + 4, length: 1}
	blocking, lost := q.check("target", &other)
	require.NotNil(t, blocking)
	require.True(t, lost)
	blocking, _ = q.check("another", &other)
	require.Nil(t, blocking)
	reading := other
	reading.op = core.Read
	blocking, _ = q.check("target", &reading)
	require.Nil(t, blocking)
	require.True(t, slices.ContainsFunc(q.byTarget["target"].ranges, func(r heldRange) bool { return r.low == 0 }))
	q.release(end)
	require.Zero(t, q.busy.Load())
	require.Empty(t, q.byTarget)
}
