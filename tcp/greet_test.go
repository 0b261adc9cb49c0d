package tcp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/clock"
	"kvferry/core/metadata"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestALaterVersionMayAddToAHelloAndToItsAnswer(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	c := serve(t, targetOptions{identity: wire.Identity{1}}, memory).dial()
	h := wire.Hello{Number: 1, Target: wire.Identity{1}}
	b := append(h.Encode(), make([]byte, 100)...)
	b[17], b[20] = 9, wire.HelloBody+100
	c.send(b, writeV2(sockio.AddressOf(memory), []byte("abc")))
	answer := c.answer()
	require.Equal(t, wire.Answer{Target: wire.Identity{1}}, answer)
	c.expectStatus(wire.StatusOK)

	longer := answer.Encode()
	longer[wire.StatusSize+4] += 3
	read, err := wire.ReadAnswer(bytes.NewReader(append(longer, 1, 2, 3)))
	require.NoError(t, err)
	require.Equal(t, answer, read)
}

// greet says hello on a connection of plain socket calls.
func (c *client) greet(h wire.Hello) wire.Answer {
	c.t.Helper()
	c.send(h.Encode())
	return c.answer()
}

// answer receives the answer to a hello. What it says of the target's age is checked, and left out.
func (c *client) answer() wire.Answer {
	c.t.Helper()
	answer, err := wire.ReadAnswer(c.conn)
	require.NoError(c.t, err)
	require.Positive(c.t, answer.Age)
	require.Less(c.t, answer.Age, time.Since(testsBegan))
	answer.Age = 0
	return answer
}

var testsBegan = time.Now()

func TestAHelloForAnotherEngineIsRefusedWithTheIdentityOfThisOne(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, targetOptions{identity: wire.Identity{1}}, memory)
	c := h.dial()
	c.send(append((&wire.Hello{Number: 1, Target: wire.Identity{2}}).Encode(), writeV2(sockio.AddressOf(memory), []byte("payload"))...))
	require.Equal(t, wire.Answer{Code: wire.StatusOtherEngine, Target: wire.Identity{1}}, c.answer())
	c.expectReset()
	require.Equal(t, make([]byte, 4096), memory)
}

func TestABadHelloEndsItsConnectionAlone(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, targetOptions{}, memory)
	good := h.dial()
	require.Equal(t, wire.Answer{}, good.greet(wire.Hello{Number: 7}))
	twice := h.dial()
	require.EqualValues(t, wire.StatusRejected, twice.greet(wire.Hello{Number: 7}).Code)
	twice.expectReset()

	short, long, unnumbered := (&wire.Hello{Number: 1}).Encode(), (&wire.Hello{Number: 1}).Encode(), (&wire.Hello{}).Encode()
	short[20] = wire.HelloBody - 1
	long[22] = 1
	for _, bad := range [][]byte{short, long, unnumbered} {
		c := h.dial()
		c.send(bad)
		_, err := io.ReadAll(c.conn)
		if err != nil {
			require.ErrorIs(t, err, unix.ECONNRESET)
		}
	}
	good.send((&wire.Hello{Number: 8}).Encode()) // not the first thing that is said
	good.expectReset()
	other := h.dial()
	other.send(writeV2(sockio.AddressOf(memory), []byte("abc")))
	other.expectStatus(wire.StatusOK)
}

func TestTheAnswerToAHelloThatEndsAConnectionComesWhenItsSessionHasEnded(t *testing.T) {
	a := accelerate(t, staging.Options{BlockSize: 1 << 20, PoolSize: 4 << 20})
	device := a.memory(1 << 20)
	h := a.serve(targetOptions{progressTimeout: 300 * time.Millisecond}, device)
	c := h.dial()
	c.greet(wire.Hello{Number: 1})
	release := a.holdCopies()
	c.send(writeV2(sockio.AddressOf(device), tcptest.Pattern(1<<20, 1)))
	a.waitForACopy()

	require.EqualValues(t, wire.StatusNotEnded, h.dial().greet(wire.Hello{Number: 2, Ends: 1}).Code, "its copy to the device is under way")
	require.EqualValues(t, wire.StatusOK, h.dial().greet(wire.Hello{Origin: wire.Identity{9}, Number: 3, Ends: 1}).Code, "the connection of another initiator")
	release()
	require.Eventually(t, func() bool {
		return h.dial().greet(wire.Hello{Number: h.numbers.Add(1) + 3, Ends: 1}).Code == wire.StatusOK
	},
		tcptest.Patience, time.Millisecond)
	require.EqualValues(t, wire.StatusOK, h.dial().greet(wire.Hello{Number: 100, Ends: 55}).Code, "there was no such connection")
}

func TestNothingOfAnEndedConnectionIsAppliedAfterTheAnswer(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	h := serve(t, targetOptions{}, memory)
	old := h.dial()
	old.greet(wire.Hello{Number: 1})
	payload := bytes.Repeat([]byte{0xaa}, len(memory))
	whole := writeV2(sockio.AddressOf(memory), payload)
	old.send(whole[:len(whole)/2])
	require.EqualValues(t, wire.StatusOK, h.dial().greet(wire.Hello{Number: 2, Ends: 1}).Code)
	clear(memory)
	_, _ = old.conn.Write(whole[len(whole)/2:]) // fails when the reset has come
	_, _ = io.Copy(io.Discard, old.conn)
	require.Equal(t, make([]byte, len(memory)), memory)
}

// performAs is perform for a peer that has an identity and shows another engine's data port.
func performAs(t testing.TB, shown wire.Identity, port int, memory ...[]byte) *scripted {
	p := perform(t, 2, serveWell, memory...)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown.IsKvferry, p.shown.Identity, p.shown.Hello, p.shown.DataPort = true, shown.String(), 1, port
	return p
}

func TestATransferToAnEngineWhoseDataPortIsAnothersNowFailsAndMovesNothing(t *testing.T) {
	for _, way := range ways {
		for _, op := range opcodes {
			near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
			tcptest.Fill(near, 1)
			tcptest.Fill(far, 2)
			other, e := engine(t), engine(t, way.config)
			require.NoError(t, other.Register(sockio.AddressOf(far), 4096, "cpu:0", true))
			gone := performAs(t, wire.Identity{1}, other.Descriptor().DataPort, far)
			b := submit(t, e, ask(op, near, open(t, e, gone.name), far))
			failsOnly(t, b, 0)
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
	p := perform(t, 2, serveWell, far)
	p.mu.Lock()
	p.shown.IsKvferry, p.shown.Identity, p.shown.Hello = true, wire.Identity{1}.String(), 1
	p.mu.Unlock()
	e := engine(t)
	b := submit(t, e, ask(core.Write, near, open(t, e, p.name), far))
	failsOnly(t, b, 0)
	require.Equal(t, make([]byte, 4096), far)
}

func TestADescriptorThatNamesThisEnginesOwnDataPortIsRefused(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(near, 1)
	for _, way := range ways {
		e := engine(t, way.config)
		require.NoError(t, e.Register(sockio.AddressOf(far), 4096, "cpu:0", true))
		p := perform(t, 2, serveWell, far)
		p.mu.Lock()
		p.shown.DataPort = e.Descriptor().DataPort
		p.mu.Unlock()
		b := submit(t, e, ask(core.Write, near, open(t, e, p.name), far))
		failsOnly(t, b, 0)
		require.ErrorIs(t, b.Err(), errOwnAddress)
		require.Equal(t, make([]byte, 4096), far)
	}
}

// reincarnate has a peer's handshake port answer for another engine.
func (p *scripted) reincarnate(e *core.Engine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown = p.descriptorOf(e)
}

// descriptorOf is that of an engine under the peer's name.
func (p *scripted) descriptorOf(e *core.Engine) metadata.Descriptor {
	d := e.Descriptor()
	return metadata.Descriptor{Name: p.name, Protocol: "tcp", DataHost: "127.0.0.1", DataPort: d.DataPort, ProtoVersion: 2,
		IsKvferry: true, Identity: d.Identity, Hello: d.Hello, Buffers: d.Buffers}
}

func TestATaskDoesNotMoveToTheNextIncarnationAndANewCallByNameFindsIt(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
			tcptest.Fill(near, 1)
			next, e := engine(t), engine(t, way.config, oneLane)
			require.NoError(t, next.Register(sockio.AddressOf(far), 4096, "cpu:0", true))
			port, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}) // of an engine that is stopped
			require.NoError(t, err)
			p := performAs(t, wire.Identity{1}, port.Addr().(*net.TCPAddr).Port, far)
			id := open(t, e, p.name)
			b := submit(t, e, ask(core.Write, near, id, far))
			greeted, err := port.Accept()
			require.NoError(t, err)
			p.reincarnate(next)
			require.NoError(t, port.Close())
			require.NoError(t, greeted.Close())
			failsOnly(t, b, 0)
			require.ErrorIs(t, b.Err(), errRestarted)
			require.ErrorContains(t, b.Err(), wire.Identity{1}.String())
			require.ErrorContains(t, b.Err(), next.Identity())
			require.Equal(t, make([]byte, 4096), far)

			completes(t, submit(t, e, ask(core.Write, near, open(t, e, p.name), far)))
			require.True(t, bytes.Equal(near, far))
		})
	}
}

// closedPort is one at which nobody answers any more.
func closedPort(t testing.TB) int {
	t.Helper()
	port, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	require.NoError(t, port.Close())
	return port.Addr().(*net.TCPAddr).Port
}

func TestATaskGoesToTheEngineThatWasThereWhenItWasSubmittedAndToNoYoungerOne(t *testing.T) {
	for _, way := range ways {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late %v", way.name, late), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
				tcptest.Fill(near, 1)
				e := engine(t, way.config, oneLane)
				p := performAs(t, wire.Identity{1}, closedPort(t), far)
				id := open(t, e, p.name)
				p.mu.Lock() // its descriptor cannot be fetched meanwhile
				var b *core.Batch
				if late {
					b = submit(t, e, ask(core.Write, near, id, far))
				}
				next := engine(t)
				require.NoError(t, next.Register(sockio.AddressOf(far), 4096, "cpu:0", true))
				p.shown = p.descriptorOf(next)
				p.mu.Unlock()
				if late {
					failsOnly(t, b, 0)
					require.ErrorIs(t, b.Err(), errRestarted)
					require.Equal(t, make([]byte, 4096), far)
					return
				}
				old := clock.SinceBoot() + 200*time.Millisecond // more than an answer takes to come
				require.Eventually(t, func() bool { return clock.SinceBoot() > old }, tcptest.Patience, time.Millisecond)
				completes(t, submit(t, e, ask(core.Write, near, id, far)))
				require.True(t, bytes.Equal(near, far))
			})
		}
	}
}

func TestATaskDoesNotMoveBetweenAnEngineWithAnIdentityAndALaterOneWithout(t *testing.T) {
	for _, way := range ways {
		for _, first := range []wire.Identity{{}, {1}} {
			t.Run(fmt.Sprintf("%s, first %v", way.name, first), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
				tcptest.Fill(near, 1)
				e := engine(t, way.config, oneLane)
				p := perform(t, 2, serveWell, far)
				p.mu.Lock()
				without := p.shown
				p.shown.DataPort = closedPort(t)
				if first != (wire.Identity{}) {
					p.shown.IsKvferry, p.shown.Identity, p.shown.Hello = true, first.String(), 1
				}
				p.mu.Unlock()
				id := open(t, e, p.name)
				p.mu.Lock() // its descriptor cannot be fetched meanwhile
				b := submit(t, e, ask(core.Write, near, id, far))
				p.shown = without
				if first == (wire.Identity{}) {
					next := engine(t)
					require.NoError(t, next.Register(sockio.AddressOf(far), 4096, "cpu:0", true))
					p.shown = p.descriptorOf(next)
				}
				p.mu.Unlock()
				failsOnly(t, b, 0)
				require.ErrorIs(t, b.Err(), errRestarted)
				require.ErrorContains(t, b.Err(), "an engine without an identity")
				require.Equal(t, make([]byte, 4096), far)
			})
		}
	}
}

func TestAnEngineThatCannotBeConfirmedIsNotDialledUnlessItProvesWhoItIs(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	e := engine(t)
	p := perform(t, 2, serveWell, far)
	id := open(t, e, p.name)
	completes(t, submit(t, e, ask(core.Write, near, id, far)))
	p.mu.Lock()
	p.shown.Protocol = "nothing that can be fetched"
	p.mu.Unlock()
	p.hangUp()
	require.Eventually(t, func() bool { return onlyPeer(t, e).link().Connections == 0 }, tcptest.Patience, time.Millisecond)
	before := p.connections()
	failsOnly(t, submit(t, e, ask(core.Write, near, id, far)), 0)
	require.Equal(t, before, p.connections())

	target, e := engine(t), engine(t, oneLane)
	require.NoError(t, target.Register(sockio.AddressOf(far), 4096, "cpu:0", true))
	id = open(t, e, target.Name())
	completes(t, submit(t, e, ask(core.Write, near, id, far)))
	only := onlyPeer(t, e)
	only.mu.Lock()
	only.suspect = true
	only.mu.Unlock()
	only.segment.MarkUnverified()
	ctx, done := context.WithTimeout(context.Background(), tcptest.Patience)
	defer done()
	d, err := only.current(ctx)
	require.NoError(t, err)
	require.Equal(t, target.Identity(), d.Identity)
}
