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

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestAHelloIsReadAsItWasWritten(t *testing.T) {
	want := hello{origin: identity{1, 2}, number: 3, target: identity{4, 15: 5}, ends: 6, permitAt: 7}
	b := want.encode()
	require.Len(t, b, helloSize)
	require.True(t, isHello(b))
	rest, err := helloRest(b)
	require.NoError(t, err)
	require.Equal(t, helloBody, rest)
	got, err := parseHello(b[headerSize:])
	require.NoError(t, err)
	require.Equal(t, want, got)

	answer := helloAnswer{code: statusNotEnded, target: identity{8}, flags: 9, age: time.Hour}
	read, err := readAnswer(bytes.NewReader(answer.encode()))
	require.NoError(t, err)
	require.Equal(t, answer, read)
}

// An engine that knows no hello takes one for a request of no bytes, which touches no memory.
func TestAHelloIsARequestOfNoBytesToOthers(t *testing.T) {
	h := hello{number: 1}
	b := h.encode()
	require.Equal(t, make([]byte, 8), b[:8])
	require.NotZero(t, b[16]&protoV2)
	require.Equal(t, identity{}.String(), parseIdentity(identity{}.String()).String())
}

func TestALaterVersionMayAddToAHelloAndToItsAnswer(t *testing.T) {
	memory := mapped(t, 4096)
	c := serve(t, targetOptions{identity: identity{1}}, memory).dial()
	h := hello{number: 1, target: identity{1}}
	b := append(h.encode(), make([]byte, 100)...)
	b[17], b[20] = 9, helloBody+100
	c.send(b, writeV2(addressOf(memory), []byte("abc")))
	answer := c.answer()
	require.Equal(t, helloAnswer{target: identity{1}}, answer)
	c.expectStatus(statusOK)

	longer := answer.encode()
	longer[statusSize+4] += 3
	read, err := readAnswer(bytes.NewReader(append(longer, 1, 2, 3)))
	require.NoError(t, err)
	require.Equal(t, answer, read)
}

// greet says hello on a connection of plain socket calls.
func (c *client) greet(h hello) helloAnswer {
	c.t.Helper()
	c.send(h.encode())
	return c.answer()
}

// answer receives the answer to a hello. What it says of the target's age is checked, and left out.
func (c *client) answer() helloAnswer {
	c.t.Helper()
	answer, err := readAnswer(c.conn)
	require.NoError(c.t, err)
	require.Positive(c.t, answer.age)
	require.Less(c.t, answer.age, time.Since(testsBegan))
	answer.age = 0
	return answer
}

var testsBegan = time.Now()

func TestAHelloForAnotherEngineIsRefusedWithTheIdentityOfThisOne(t *testing.T) {
	memory := mapped(t, 4096)
	h := serve(t, targetOptions{identity: identity{1}}, memory)
	c := h.dial()
	c.send(append((&hello{number: 1, target: identity{2}}).encode(), writeV2(addressOf(memory), []byte("payload"))...))
	require.Equal(t, helloAnswer{code: statusOtherEngine, target: identity{1}}, c.answer())
	c.expectReset()
	require.Equal(t, make([]byte, 4096), memory)
}

func TestABadHelloEndsItsConnectionAlone(t *testing.T) {
	memory := mapped(t, 4096)
	h := serve(t, targetOptions{}, memory)
	good := h.dial()
	require.Equal(t, helloAnswer{}, good.greet(hello{number: 7}))
	twice := h.dial()
	require.EqualValues(t, statusRejected, twice.greet(hello{number: 7}).code)
	twice.expectReset()

	short, long, unnumbered := (&hello{number: 1}).encode(), (&hello{number: 1}).encode(), (&hello{}).encode()
	short[20] = helloBody - 1
	long[22] = 1
	for _, bad := range [][]byte{short, long, unnumbered} {
		c := h.dial()
		c.send(bad)
		_, err := io.ReadAll(c.conn)
		if err != nil {
			require.ErrorIs(t, err, unix.ECONNRESET)
		}
	}
	good.send((&hello{number: 8}).encode()) // not the first thing that is said
	good.expectReset()
	other := h.dial()
	other.send(writeV2(addressOf(memory), []byte("abc")))
	other.expectStatus(statusOK)
}

func TestTheAnswerToAHelloThatEndsAConnectionComesWhenItsSessionHasEnded(t *testing.T) {
	a := accelerate(t, staging.Options{BlockSize: 1 << 20, PoolSize: 4 << 20})
	device := a.memory(1 << 20)
	h := a.serve(targetOptions{progressTimeout: 300 * time.Millisecond}, device)
	c := h.dial()
	c.greet(hello{number: 1})
	release := a.holdCopies()
	c.send(writeV2(addressOf(device), pattern(1<<20, 1)))
	a.waitForACopy()

	require.EqualValues(t, statusNotEnded, h.dial().greet(hello{number: 2, ends: 1}).code, "its copy to the device is under way")
	require.EqualValues(t, statusOK, h.dial().greet(hello{origin: identity{9}, number: 3, ends: 1}).code, "the connection of another initiator")
	release()
	require.Eventually(t, func() bool { return h.dial().greet(hello{number: h.numbers.Add(1) + 3, ends: 1}).code == statusOK },
		patience, time.Millisecond)
	require.EqualValues(t, statusOK, h.dial().greet(hello{number: 100, ends: 55}).code, "there was no such connection")
}

func TestNothingOfAnEndedConnectionIsAppliedAfterTheAnswer(t *testing.T) {
	memory := mapped(t, 1<<20)
	h := serve(t, targetOptions{}, memory)
	old := h.dial()
	old.greet(hello{number: 1})
	payload := bytes.Repeat([]byte{0xaa}, len(memory))
	whole := writeV2(addressOf(memory), payload)
	old.send(whole[:len(whole)/2])
	require.EqualValues(t, statusOK, h.dial().greet(hello{number: 2, ends: 1}).code)
	clear(memory)
	_, _ = old.conn.Write(whole[len(whole)/2:]) // fails when the reset has come
	_, _ = io.Copy(io.Discard, old.conn)
	require.Equal(t, make([]byte, len(memory)), memory)
}

// performAs is perform for a peer that has an identity and shows another engine's data port.
func performAs(t testing.TB, shown identity, port int, memory ...[]byte) *scripted {
	p := perform(t, 2, serveWell, memory...)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown.IsKvferry, p.shown.Identity, p.shown.Hello, p.shown.DataPort = true, shown.String(), 1, port
	return p
}

func TestATransferToAnEngineWhoseDataPortIsAnothersNowFailsAndMovesNothing(t *testing.T) {
	for _, way := range ways {
		for _, op := range opcodes {
			near, far := mapped(t, 4096), mapped(t, 4096)
			fill(near, 1)
			fill(far, 2)
			other, e := engine(t), engine(t, way.config)
			require.NoError(t, other.Register(addressOf(far), 4096, "cpu:0", true))
			gone := performAs(t, identity{1}, other.Descriptor().DataPort, far)
			b := submit(t, e, ask(op, near, open(t, e, gone.name), far))
			failsOnly(t, b, 0)
			require.ErrorContains(t, b.Err(), identity{1}.String())
			require.ErrorContains(t, b.Err(), other.Identity())
			require.True(t, bytes.Equal(pattern(4096, 1), near))
			require.True(t, bytes.Equal(pattern(4096, 2), far))
		}
	}
}

func TestAPeerThatKnowsNoHelloAlthoughItShowsOneGetsNoPayload(t *testing.T) {
	near, far := mapped(t, 4096), mapped(t, 4096)
	fill(near, 1)
	p := perform(t, 2, serveWell, far)
	p.mu.Lock()
	p.shown.IsKvferry, p.shown.Identity, p.shown.Hello = true, identity{1}.String(), 1
	p.mu.Unlock()
	e := engine(t)
	b := submit(t, e, ask(core.Write, near, open(t, e, p.name), far))
	failsOnly(t, b, 0)
	require.Equal(t, make([]byte, 4096), far)
}

func TestADescriptorThatNamesThisEnginesOwnDataPortIsRefused(t *testing.T) {
	near, far := mapped(t, 4096), mapped(t, 4096)
	fill(near, 1)
	for _, way := range ways {
		e := engine(t, way.config)
		require.NoError(t, e.Register(addressOf(far), 4096, "cpu:0", true))
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
			near, far := mapped(t, 4096), mapped(t, 4096)
			fill(near, 1)
			next, e := engine(t), engine(t, way.config, oneLane)
			require.NoError(t, next.Register(addressOf(far), 4096, "cpu:0", true))
			port, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}) // of an engine that is stopped
			require.NoError(t, err)
			p := performAs(t, identity{1}, port.Addr().(*net.TCPAddr).Port, far)
			id := open(t, e, p.name)
			b := submit(t, e, ask(core.Write, near, id, far))
			greeted, err := port.Accept()
			require.NoError(t, err)
			p.reincarnate(next)
			require.NoError(t, port.Close())
			require.NoError(t, greeted.Close())
			failsOnly(t, b, 0)
			require.ErrorIs(t, b.Err(), errRestarted)
			require.ErrorContains(t, b.Err(), identity{1}.String())
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
				near, far := mapped(t, 4096), mapped(t, 4096)
				fill(near, 1)
				e := engine(t, way.config, oneLane)
				p := performAs(t, identity{1}, closedPort(t), far)
				id := open(t, e, p.name)
				p.mu.Lock() // its descriptor cannot be fetched meanwhile
				var b *core.Batch
				if late {
					b = submit(t, e, ask(core.Write, near, id, far))
				}
				next := engine(t)
				require.NoError(t, next.Register(addressOf(far), 4096, "cpu:0", true))
				p.shown = p.descriptorOf(next)
				p.mu.Unlock()
				if late {
					failsOnly(t, b, 0)
					require.ErrorIs(t, b.Err(), errRestarted)
					require.Equal(t, make([]byte, 4096), far)
					return
				}
				old := clock.SinceBoot() + 200*time.Millisecond // more than an answer takes to come
				require.Eventually(t, func() bool { return clock.SinceBoot() > old }, patience, time.Millisecond)
				completes(t, submit(t, e, ask(core.Write, near, id, far)))
				require.True(t, bytes.Equal(near, far))
			})
		}
	}
}

func TestATaskDoesNotMoveBetweenAnEngineWithAnIdentityAndALaterOneWithout(t *testing.T) {
	for _, way := range ways {
		for _, first := range []identity{{}, {1}} {
			t.Run(fmt.Sprintf("%s, first %v", way.name, first), func(t *testing.T) {
				near, far := mapped(t, 4096), mapped(t, 4096)
				fill(near, 1)
				e := engine(t, way.config, oneLane)
				p := perform(t, 2, serveWell, far)
				p.mu.Lock()
				without := p.shown
				p.shown.DataPort = closedPort(t)
				if first != (identity{}) {
					p.shown.IsKvferry, p.shown.Identity, p.shown.Hello = true, first.String(), 1
				}
				p.mu.Unlock()
				id := open(t, e, p.name)
				p.mu.Lock() // its descriptor cannot be fetched meanwhile
				b := submit(t, e, ask(core.Write, near, id, far))
				p.shown = without
				if first == (identity{}) {
					next := engine(t)
					require.NoError(t, next.Register(addressOf(far), 4096, "cpu:0", true))
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
	near, far := mapped(t, 4096), mapped(t, 4096)
	e := engine(t)
	p := perform(t, 2, serveWell, far)
	id := open(t, e, p.name)
	completes(t, submit(t, e, ask(core.Write, near, id, far)))
	p.mu.Lock()
	p.shown.Protocol = "nothing that can be fetched"
	p.mu.Unlock()
	p.hangUp()
	require.Eventually(t, func() bool { return onlyPeer(t, e).link().Connections == 0 }, patience, time.Millisecond)
	before := p.connections()
	failsOnly(t, submit(t, e, ask(core.Write, near, id, far)), 0)
	require.Equal(t, before, p.connections())

	target, e := engine(t), engine(t, oneLane)
	require.NoError(t, target.Register(addressOf(far), 4096, "cpu:0", true))
	id = open(t, e, target.Name())
	completes(t, submit(t, e, ask(core.Write, near, id, far)))
	only := onlyPeer(t, e)
	only.mu.Lock()
	only.suspect = true
	only.mu.Unlock()
	only.segment.MarkUnverified()
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	d, err := only.current(ctx)
	require.NoError(t, err)
	require.Equal(t, target.Identity(), d.Identity)
}

func FuzzHello(f *testing.F) {
	f.Add((&hello{number: 1, target: identity{2}}).encode())
	f.Add((&helloAnswer{code: 1}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = readAnswer(bytes.NewReader(b))
		if len(b) < headerSize || !isHello(b) {
			return
		}
		rest, err := helloRest(b)
		if err != nil || len(b) < headerSize+rest {
			return
		}
		h, err := parseHello(b[headerSize : headerSize+rest])
		if err == nil {
			require.Equal(t, b[headerSize:helloSize], h.encode()[headerSize:])
		}
	})
}
