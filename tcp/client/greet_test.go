package client

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/clock"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

func TestATransferToAnEngineWhoseDataPortIsAnothersNowFailsAndMovesNothing(t *testing.T) {
	for _, way := range tcptest.Ways {
		for _, op := range tcptest.Opcodes {
			near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
			tcptest.Fill(near, 1)
			tcptest.Fill(far, 2)
			other, e := newEngine(t), newEngine(t, way.Config)
			require.NoError(t, other.Register(hostmem.AddressOf(far), 4096, "cpu:0", true))
			gone := tcptest.PerformAs(t, wire.Identity{1}, other.Descriptor().DataPort, far)
			b := tcptest.Submit(t, e, tcptest.Ask(op, near, tcptest.OpenSegment(t, e, gone.Name), far))
			tcptest.FailsOnly(t, b, 0)
			require.ErrorContains(t, b.Err(), wire.Identity{1}.String())
			require.ErrorContains(t, b.Err(), other.Identity())
			require.True(t, bytes.Equal(tcptest.Pattern(4096, 1), near))
			require.True(t, bytes.Equal(tcptest.Pattern(4096, 2), far))
		}
	}
}

func TestAPeerThatKnowsNoHelloAlthoughItShowsOneGetsNoPayload(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(near, 1)
	p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
	p.Mu.Lock()
	p.Shown.IsKvferry, p.Shown.Identity, p.Shown.Hello = true, wire.Identity{1}.String(), 1
	p.Mu.Unlock()
	e := newEngine(t)
	b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far))
	tcptest.FailsOnly(t, b, 0)
	require.Equal(t, make([]byte, 4096), far)
}

func TestADescriptorThatNamesThisEnginesOwnDataPortIsRefused(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(near, 1)
	for _, way := range tcptest.Ways {
		e := newEngine(t, way.Config)
		require.NoError(t, e.Register(hostmem.AddressOf(far), 4096, "cpu:0", true))
		p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
		p.Mu.Lock()
		p.Shown.DataPort = e.Descriptor().DataPort
		p.Mu.Unlock()
		b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far))
		tcptest.FailsOnly(t, b, 0)
		require.ErrorIs(t, b.Err(), errOwnAddress)
		require.Equal(t, make([]byte, 4096), far)
	}
}

func TestADescriptorLeadsNowhereButWhereItWasAskedForAndWhereTheOperatorAllows(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	for allow, led := range map[string]bool{"": true, "127.0.0.96/29,10.0.0.0/8": true, "10.0.0.0/8": false} {
		third, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 99)})
		require.NoError(t, err)
		came := make(chan struct{}, 64)
		go func() {
			for {
				conn, err := third.Accept()
				if err != nil {
					close(came)
					return
				}
				came <- struct{}{}
				_ = conn.Close()
			}
		}()
		p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
		p.Mu.Lock()
		p.Shown.DataHost, p.Shown.DataPort = "127.0.0.99", third.Addr().(*net.TCPAddr).Port
		p.Mu.Unlock()
		e := newEngine(t, tcptest.OneLane, tcptest.FewRetries, func(c *core.Config) { c.Allow = allow })
		b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far))
		tcptest.FailsOnly(t, b, 0)
		require.NoError(t, third.Close())
		if _, ok := <-came; led {
			require.True(t, ok, allow)
		} else {
			require.False(t, ok, allow)
			require.ErrorContains(t, b.Err(), "KVFERRY_ALLOW")
		}
	}
}

func TestATaskDoesNotMoveToTheNextIncarnationAndANewCallByNameFindsIt(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
			tcptest.Fill(near, 1)
			next, e := newEngine(t), newEngine(t, way.Config, tcptest.OneLane)
			require.NoError(t, next.Register(hostmem.AddressOf(far), 4096, "cpu:0", true))
			port, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}) // of an engine that is stopped
			require.NoError(t, err)
			p := tcptest.PerformAs(t, wire.Identity{1}, port.Addr().(*net.TCPAddr).Port, far)
			id := tcptest.OpenSegment(t, e, p.Name)
			b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far))
			greeted, err := port.Accept()
			require.NoError(t, err)
			p.Reincarnate(next)
			require.NoError(t, port.Close())
			require.NoError(t, greeted.Close())
			tcptest.FailsOnly(t, b, 0)
			require.ErrorIs(t, b.Err(), errRestarted)
			require.ErrorContains(t, b.Err(), wire.Identity{1}.String())
			require.ErrorContains(t, b.Err(), next.Identity())
			require.Equal(t, make([]byte, 4096), far)

			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far)))
			require.True(t, bytes.Equal(near, far))
		})
	}
}

func TestATaskGoesToTheEngineThatWasThereWhenItWasSubmittedAndToNoYoungerOne(t *testing.T) {
	for _, way := range tcptest.Ways {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late %v", way.Name, late), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
				tcptest.Fill(near, 1)
				e := newEngine(t, way.Config, tcptest.OneLane)
				p := tcptest.PerformAs(t, wire.Identity{1}, tcptest.ClosedPort(t), far)
				id := tcptest.OpenSegment(t, e, p.Name)
				p.Mu.Lock() // its descriptor cannot be fetched meanwhile
				var b *core.Batch
				if late {
					b = tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far))
				}
				next := newEngine(t)
				require.NoError(t, next.Register(hostmem.AddressOf(far), 4096, "cpu:0", true))
				p.Shown = p.DescriptorOf(next)
				p.Mu.Unlock()
				if late {
					tcptest.FailsOnly(t, b, 0)
					require.ErrorIs(t, b.Err(), errRestarted)
					require.Equal(t, make([]byte, 4096), far)
					return
				}
				old := clock.SinceBoot() + 200*time.Millisecond // more than an answer takes to come
				require.Eventually(t, func() bool { return clock.SinceBoot() > old }, tcptest.Patience, time.Millisecond)
				tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
				require.True(t, bytes.Equal(near, far))
			})
		}
	}
}

func TestATaskDoesNotMoveBetweenAnEngineWithAnIdentityAndALaterOneWithout(t *testing.T) {
	for _, way := range tcptest.Ways {
		for _, first := range []wire.Identity{{}, {1}} {
			t.Run(fmt.Sprintf("%s, first %v", way.Name, first), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
				tcptest.Fill(near, 1)
				e := newEngine(t, way.Config, tcptest.OneLane)
				p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
				p.Mu.Lock()
				without := p.Shown
				p.Shown.DataPort = tcptest.ClosedPort(t)
				if first != (wire.Identity{}) {
					p.Shown.IsKvferry, p.Shown.Identity, p.Shown.Hello = true, first.String(), 1
				}
				p.Mu.Unlock()
				id := tcptest.OpenSegment(t, e, p.Name)
				p.Mu.Lock() // its descriptor cannot be fetched meanwhile
				b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far))
				p.Shown = without
				if first == (wire.Identity{}) {
					next := newEngine(t)
					require.NoError(t, next.Register(hostmem.AddressOf(far), 4096, "cpu:0", true))
					p.Shown = p.DescriptorOf(next)
				}
				p.Mu.Unlock()
				tcptest.FailsOnly(t, b, 0)
				require.ErrorIs(t, b.Err(), errRestarted)
				require.ErrorContains(t, b.Err(), "an engine without an identity")
				require.Equal(t, make([]byte, 4096), far)
			})
		}
	}
}

func TestAnEngineThatCannotBeConfirmedIsNotDialledUnlessItProvesWhoItIs(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	e := newEngine(t)
	p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
	id := tcptest.OpenSegment(t, e, p.Name)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
	p.Mu.Lock()
	p.Shown.Protocol = "nothing that can be fetched"
	p.Mu.Unlock()
	p.HangUp()
	require.Eventually(t, func() bool { return onlyPeer(t, e).link().Connections == 0 }, tcptest.Patience, time.Millisecond)
	before := p.Connections()
	tcptest.FailsOnly(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)), 0)
	require.Equal(t, before, p.Connections())

	target, e := newEngine(t), newEngine(t, tcptest.OneLane)
	require.NoError(t, target.Register(hostmem.AddressOf(far), 4096, "cpu:0", true))
	id = tcptest.OpenSegment(t, e, target.Name())
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
	only := onlyPeer(t, e)
	only.mu.Lock()
	only.unconfirmed = true
	only.mu.Unlock()
	only.segment.MarkUnverified()
	ctx, done := context.WithTimeout(context.Background(), tcptest.Patience)
	defer done()
	d, err := only.current(ctx)
	require.NoError(t, err)
	require.Equal(t, target.Identity(), d.Identity)
}
