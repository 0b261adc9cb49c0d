package server

import (
	"bytes"
	"io"
	"testing"
	"time"

	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestALaterVersionMayAddToAHelloAndToItsAnswer(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	c := serve(t, Options{Identity: wire.Identity{1}}, memory).dial()
	h := wire.Hello{Number: 1, Target: wire.Identity{1}}
	b := append(h.Encode(), make([]byte, 100)...)
	b[17], b[20] = 9, wire.HelloBody+100
	c.Send(b, tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	answer := c.Answer()
	require.Equal(t, wire.Answer{Target: wire.Identity{1}, Flags: wire.AnswerStrided}, answer)
	c.ExpectStatus(wire.StatusOK)

	longer := answer.Encode()
	longer[wire.StatusSize+4] += 3
	read, err := wire.ReadAnswer(bytes.NewReader(append(longer, 1, 2, 3)))
	require.NoError(t, err)
	require.Equal(t, answer, read)
}

func TestAHelloForAnotherEngineIsRefusedWithTheIdentityOfThisOne(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{Identity: wire.Identity{1}}, memory)
	c := h.dial()
	c.Send(append((&wire.Hello{Number: 1, Target: wire.Identity{2}}).Encode(), tcptest.WriteV2(hostmem.AddressOf(memory), []byte("payload"))...))
	require.Equal(t, wire.Answer{Code: wire.StatusOtherEngine, Target: wire.Identity{1}}, c.Answer())
	c.ExpectReset()
	require.Equal(t, make([]byte, 4096), memory)
}

func TestABadHelloEndsItsConnectionAlone(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{}, memory)
	good := h.dial()
	require.Equal(t, wire.Answer{Flags: wire.AnswerStrided}, good.Greet(wire.Hello{Number: 7}))
	twice := h.dial()
	require.EqualValues(t, wire.StatusRejected, twice.Greet(wire.Hello{Number: 7}).Code)
	twice.ExpectReset()

	short, long, unnumbered := (&wire.Hello{Number: 1}).Encode(), (&wire.Hello{Number: 1}).Encode(), (&wire.Hello{}).Encode()
	short[20] = wire.HelloBody - 1
	long[22] = 1
	for _, bad := range [][]byte{short, long, unnumbered} {
		c := h.dial()
		c.Send(bad)
		_, err := io.ReadAll(c.Conn)
		if err != nil {
			require.ErrorIs(t, err, unix.ECONNRESET)
		}
	}
	good.Send((&wire.Hello{Number: 8}).Encode()) // not the first thing that is said
	good.ExpectReset()
	other := h.dial()
	other.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	other.ExpectStatus(wire.StatusOK)
}

func TestTheAnswerToAHelloThatEndsAConnectionComesWhenItsSessionHasEnded(t *testing.T) {
	a := tcptest.Accelerate(t, staging.Options{BlockSize: 1 << 20, PoolSize: 4 << 20})
	device := a.Memory(1 << 20)
	h := serveDevice(a, Options{ProgressTimeout: 300 * time.Millisecond}, device)
	c := h.dial()
	c.Greet(wire.Hello{Number: 1})
	release := a.HoldCopies()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(device), tcptest.Pattern(1<<20, 1)))
	a.WaitForACopy()

	require.EqualValues(t, wire.StatusNotEnded, h.dial().Greet(wire.Hello{Number: 2, Ends: 1}).Code, "its copy to the device is under way")
	require.EqualValues(t, wire.StatusOK, h.dial().Greet(wire.Hello{Origin: wire.Identity{9}, Number: 3, Ends: 1}).Code, "the connection of another initiator")
	release()
	require.Eventually(t, func() bool {
		return h.dial().Greet(wire.Hello{Number: h.numbers.Add(1) + 3, Ends: 1}).Code == wire.StatusOK
	},
		tcptest.Patience, time.Millisecond)
	require.EqualValues(t, wire.StatusOK, h.dial().Greet(wire.Hello{Number: 100, Ends: 55}).Code, "there was no such connection")
}

func TestHellosThatWaitForEachOtherEndAtOnce(t *testing.T) {
	h := serve(t, Options{ProgressTimeout: time.Hour})
	own := h.dial()
	own.Send((&wire.Hello{Number: 1, Ends: 1}).Encode())
	_, err := io.ReadAll(own.Conn)
	if err != nil {
		require.ErrorIs(t, err, unix.ECONNRESET)
	}
	h.waitForSessions(0)

	a := tcptest.Accelerate(t, staging.Options{BlockSize: 1 << 20, PoolSize: 4 << 20})
	device := a.Memory(1 << 20)
	h = serveDevice(a, Options{ProgressTimeout: time.Hour}, device)
	busy := h.dial() // its session does not end before the copy does
	busy.Greet(wire.Hello{Number: 1})
	release := a.HoldCopies()
	busy.Send(tcptest.WriteV2(hostmem.AddressOf(device), tcptest.Pattern(1<<20, 1)))
	a.WaitForACopy()
	h.dial().Send((&wire.Hello{Number: 2, Ends: 1}).Encode())
	h.waitForSessions(2)
	require.Eventually(t, func() bool { return h.knows(2) }, tcptest.Patience, time.Millisecond)
	require.EqualValues(t, wire.StatusOK, h.dial().Greet(wire.Hello{Number: 3, Ends: 2}).Code, "one that waits ends at once")
	release()
}

func TestNothingOfAnEndedConnectionIsAppliedAfterTheAnswer(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	h := serve(t, Options{}, memory)
	old := h.dial()
	old.Greet(wire.Hello{Number: 1})
	payload := bytes.Repeat([]byte{0xaa}, len(memory))
	whole := tcptest.WriteV2(hostmem.AddressOf(memory), payload)
	old.Send(whole[:len(whole)/2])
	require.EqualValues(t, wire.StatusOK, h.dial().Greet(wire.Hello{Number: 2, Ends: 1}).Code)
	clear(memory)
	_, _ = old.Conn.Write(whole[len(whole)/2:]) // fails when the reset has come
	_, _ = io.Copy(io.Discard, old.Conn)
	require.Equal(t, make([]byte, len(memory)), memory)
}
