package server

import (
	"bytes"
	"testing"
	"time"

	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

func TestPayloadNamedByItsAddressIsFetched(t *testing.T) {
	memory := tcptest.Mapped(t, 4<<20)
	h := serve(t, Options{}, memory)
	c := h.dialSameHost()
	for i, length := range lengths {
		payload := tcptest.Mapped(t, length)
		tcptest.Fill(payload, byte(i))
		c.Send(tcptest.WriteByAddress(hostmem.AddressOf(memory)+3, payload))
		c.ExpectStatus(wire.StatusOK)
		require.True(t, bytes.Equal(payload, memory[3:3+length]), length)
	}
	require.Positive(t, h.server.Links()[0].BytesIn)
}

func TestPayloadThatCannotBeFetchedIsAskedForAndTheOthersOfTheTurnArrive(t *testing.T) {
	memory, payload, gone := tcptest.Mapped(t, 3*4096), tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(payload, 1)
	tcptest.Unmap(t, gone)
	c := serve(t, Options{}, memory).dialSameHost()
	at := hostmem.AddressOf(memory)
	c.Send(tcptest.WriteByAddress(at, payload), tcptest.WriteByAddress(at+4096, gone), tcptest.WriteByAddress(at+2*4096, payload))
	c.ExpectStatus(wire.StatusOK)
	c.ExpectStatus(wire.StatusOutOfReach)
	c.ExpectStatus(wire.StatusOK)
	require.Equal(t, payload, memory[:4096])
	require.Equal(t, payload, memory[2*4096:])
	c.Send(tcptest.WriteV2(at+4096, payload))
	c.ExpectStatus(wire.StatusOK)
}

func TestPayloadsForTheSamePlaceAreFetchedInTheirOrder(t *testing.T) {
	memory, first, second := tcptest.Mapped(t, 8192), tcptest.Mapped(t, 8192), tcptest.Mapped(t, 4096)
	tcptest.Fill(first, 1)
	tcptest.Fill(second, 2)
	third := tcptest.Pattern(100, 3)
	c := serve(t, Options{}, memory).dialSameHost()
	at := hostmem.AddressOf(memory)
	c.Send(tcptest.WriteByAddress(at, first), tcptest.WriteByAddress(at+2048, second), tcptest.WriteV2(at+2048, third), tcptest.ReadV2(memory[:4096]))
	for range 4 {
		c.ExpectStatus(wire.StatusOK)
	}
	want := append(bytes.Clone(first[:2048]), third...)
	c.Expect(append(want, second[100:2048]...))
}

func TestAReadByAddressIsGrantedTheWholeRegion(t *testing.T) {
	memory := tcptest.Mapped(t, 8192)
	h := serve(t, Options{}, memory)
	h.memory.epoch.Store(77)
	c := h.dialSameHost()
	c.Send(tcptest.ReadByAddress(memory[100:200]))
	c.ExpectStatus(wire.StatusOK)
	b := make([]byte, wire.GrantSize)
	_, err := c.Conn.Read(b)
	require.NoError(t, err)
	g := wire.ParseGrant(b)
	require.EqualValues(t, hostmem.AddressOf(memory), g.Addr)
	require.EqualValues(t, len(memory), g.Length)
	require.EqualValues(t, 77, g.Epoch)
}

func TestDeviceMemoryIsOutOfReach(t *testing.T) {
	a := tcptest.Accelerate(t, staging.Options{BlockSize: 1 << 20, PoolSize: 4 << 20})
	device := a.Memory(8192)
	c := serveDevice(a, Options{}, device).dialSameHost()
	payload := tcptest.Mapped(t, 4096)
	c.Send(tcptest.WriteByAddress(hostmem.AddressOf(device), payload), tcptest.ReadByAddress(device[:10]))
	c.ExpectStatus(wire.StatusOutOfReach)
	c.ExpectStatus(wire.StatusOutOfReach)
	c.ExpectGrant(wire.Grant{})
}

func TestABadRangeByAddressIsRejected(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 8192)
	h := serve(t, Options{}, memory)
	for _, bad := range [][]byte{tcptest.WriteByAddress(hostmem.AddressOf(memory), payload), tcptest.ReadByAddress(payload)} {
		c := h.dialSameHost()
		c.Send(bad)
		c.ExpectStatus(wire.StatusRejected)
		c.ExpectEnd()
	}
}

func TestAPeerOverTCPMayNotNameAddresses(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{}, memory)
	c := h.dial()
	c.Send(tcptest.WriteByAddress(hostmem.AddressOf(memory), tcptest.Mapped(t, 4096)))
	c.ExpectReset()
	require.Equal(t, make([]byte, 4096), memory)
}

func TestASessionCopiesNothingAfterThePermitWasRevoked(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 8192), tcptest.Mapped(t, 4096)
	tcptest.Fill(payload, 1)
	h := serve(t, Options{}, memory)
	c, p := h.dialWithPermit()
	c.Send(tcptest.WriteByAddress(hostmem.AddressOf(memory), payload))
	c.ExpectStatus(wire.StatusOK)
	require.True(t, p.Revoke(tcptest.Patience, func() bool { return false }))
	_, err := c.Conn.Write(tcptest.WriteByAddress(hostmem.AddressOf(memory)+4096, payload))
	require.NoError(t, err)
	h.waitForSessions(0)
	require.Equal(t, make([]byte, 4096), memory[4096:])
}

func TestNothingIsCopiedForAPeerThatSentNoPermit(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	h := serve(t, Options{}, memory)
	for _, greets := range []bool{false, true} {
		c := h.dialSocket()
		if greets {
			require.Equal(t, wire.Answer{Flags: wire.AnswerStrided}, c.Greet(wire.Hello{Number: 1}))
		}
		c.Send(tcptest.WriteByAddress(hostmem.AddressOf(memory), payload))
		c.ExpectStatus(wire.StatusOutOfReach)
		c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
		c.ExpectStatus(wire.StatusOK)
	}
}

func TestASessionTellsOfShortRequests(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
	h := serve(t, Options{}, memory)
	c := h.dialSameHost()
	send := func(length int) {
		c.Send(tcptest.WriteByAddress(hostmem.AddressOf(memory), payload[:length]))
		c.ExpectStatus(wire.StatusOK)
	}
	before := h.server.options.Limiter.LastShort()
	send(4096)
	require.Eventually(t, func() bool { return h.server.options.Limiter.LastShort() != before }, tcptest.Patience, time.Microsecond)
	before = h.server.options.Limiter.LastShort()
	send(1 << 20)
	send(1 << 20) // the session waited for this one, so it is done with the other
	require.Equal(t, before, h.server.options.Limiter.LastShort())
}
