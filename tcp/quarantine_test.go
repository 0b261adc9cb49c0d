package tcp

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// slowFirst is a peer, as Mooncake is one, that takes a WRITE on its first connection and does nothing with it before the
// test closes goOn. Then it applies what has come, to the end of the connection.
func slowFirst(begun, goOn chan struct{}) script {
	return func(v *visitor, n int) {
		var h wire.Header
		if n > 0 || !v.header(&h) {
			serveWell(v, n)
			return
		}
		close(begun)
		<-goOn
		for more := v.obey(h); more && v.header(&h); {
			more = v.obey(h)
		}
	}
}

func TestAWriteWaitsUntilTheTargetHasDoneWithAGivenUpOneToTheSamePlace(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			old, fresh, far := tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 2<<16)
			tcptest.Fill(old, 1)
			tcptest.Fill(fresh, 2)
			begun, goOn := make(chan struct{}), make(chan struct{})
			p := perform(t, 2, slowFirst(begun, goOn), far)
			e := engine(t, way.config, oneLane)
			id := open(t, e, p.name)
			given := submit(t, e, ask(core.Write, old, id, far[:1<<16]))
			<-begun
			require.NoError(t, e.DiscardBatch(given))

			later := submit(t, e, ask(core.Write, fresh, id, far[:1<<16]))
			// Neither other places nor READs wait.
			completes(t, submit(t, e, ask(core.Write, fresh, id, far[1<<16:])))
			completes(t, submit(t, e, ask(core.Read, make([]byte, 10), id, far[:10])))
			require.False(t, later.Done())
			close(goOn)
			completes(t, later)
			require.True(t, bytes.Equal(fresh, far[:1<<16]))
			require.Zero(t, transportOf(t, e).quarantines.busy.Load())
		})
	}
}

func TestAConnectionIsNotReadToItsEndOnceTheEngineIsClosed(t *testing.T) {
	p := perform(t, 2, func(v *visitor, _ int) { <-v.peer.t.Context().Done() })
	transport := &Transport{peers: map[*core.Segment]*peer{}}
	transport.ctx, transport.cancel = context.WithCancel(context.Background())
	transport.cancel()
	peer := &peer{transport: transport, segment: &core.Segment{}}
	for range 300 { // the end of the transport and the start of the reading may come in either order
		conn := connectTo(t, p)
		returns(t, "linger", func() { peer.linger(conn, &connectionEnd{target: "target"}) })
	}
}

func TestAConnectionThatBothSidesHaveEndedBeforeItIsReadToItsEndIsOver(t *testing.T) {
	p := perform(t, 2, func(v *visitor, _ int) { v.waitForEnd() })
	transport := &Transport{peers: map[*core.Segment]*peer{}}
	transport.ctx, transport.cancel = context.WithCancel(context.Background())
	defer transport.cancel()
	peer := &peer{transport: transport, segment: &core.Segment{}}
	conn, end := connectTo(t, p), &connectionEnd{target: "target"}
	require.NoError(t, conn.CloseWrite())
	require.Eventually(t, func() bool { return errors.Is(conn.CloseWrite(), unix.ENOTCONN) }, tcptest.Patience, time.Millisecond)
	returns(t, "linger", func() { peer.linger(conn, end) })
	require.False(t, end.unknown)
}

// connectTo is a connection to a peer's data port.
func connectTo(t testing.TB, p *scripted) *connection {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, p.port.Addr().(*net.TCPAddr))
	require.NoError(t, err)
	return &connection{Socket: socketOf(t, conn)}
}

func TestAWriteThatWaitsForTooLongFailsAndSaysWhy(t *testing.T) {
	old, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	begun, goOn := make(chan struct{}), make(chan struct{})
	defer close(goOn)
	p := perform(t, 2, slowFirst(begun, goOn), far)
	e := engine(t, oneLane, func(c *core.Config) { c.StatusTimeout = 300 * time.Millisecond })
	id := open(t, e, p.name)
	given := submit(t, e, ask(core.Write, old, id, far))
	<-begun
	require.NoError(t, e.DiscardBatch(given))
	b := submit(t, e, ask(core.Write, old, id, far))
	failsOnly(t, b, 0)
	require.ErrorIs(t, b.Err(), errFormerWrite)
	require.ErrorContains(t, b.Err(), "MC_TCP_STATUS_TIMEOUT_SEC")
	b = submit(t, e, ask(core.Write, old, id, far))
	require.NoError(t, e.DiscardBatch(b), "what waits can be given up")
}

// A middlebox resets a connection: nobody can know whether the target has done with it.
func TestAfterAResetTheSameWriteIsRepeatedAndOthersToItsPlaceFail(t *testing.T) {
	for _, way := range ways[:2] {
		t.Run(way.name, func(t *testing.T) {
			old, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 8192)
			tcptest.Fill(old, 1)
			p := perform(t, 2, atFirst(1, func(v *visitor, _ int) {
				var h wire.Header
				v.header(&h)
				v.reset()
			}), far)
			e := engine(t, way.config, oneLane)
			id := open(t, e, p.name)
			completes(t, submit(t, e, ask(core.Write, old, id, far[:4096])))
			require.True(t, bytes.Equal(old, far[:4096]))

			b := submit(t, e, ask(core.Write, old[:100], id, far[1000:1100]), ask(core.Write, old, id, far[4096:]))
			failsOnly(t, b, 0)
			require.ErrorIs(t, b.Err(), errFormerWrite)
			require.ErrorContains(t, b.Err(), "reset")
		})
	}
}

func TestAWriteToAKvferryTargetWaitsForTheFormerSessionHoweverItsConnectionEnded(t *testing.T) {
	for _, way := range ways {
		for _, lost := range []bool{false, true} {
			old, fresh, far := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
			tcptest.Fill(old, 1)
			tcptest.Fill(fresh, 2)
			target, e := engine(t), engine(t, way.config, oneLane)
			require.NoError(t, target.Register(sockio.AddressOf(far), uint64(len(far)), "cpu:0", true))
			id := open(t, e, target.Name())
			for range 20 {
				b := submit(t, e, ask(core.Write, old, id, far))
				if lost {
					killOne(transportOf(t, target))
				}
				require.NoError(t, e.DiscardBatch(b))
				completes(t, submit(t, e, ask(core.Write, fresh, id, far)))
				require.True(t, bytes.Equal(fresh, far))
				clear(far)
			}
			require.Eventually(t, func() bool { return transportOf(t, e).quarantines.busy.Load() == 0 }, tcptest.Patience, time.Millisecond)
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
	require.True(t, slices.ContainsFunc(q.byTarget["target"].ranges, func(r suspectRange) bool { return r.low == 0 }))
	q.release(end)
	require.Zero(t, q.busy.Load())
	require.Empty(t, q.byTarget)
}
