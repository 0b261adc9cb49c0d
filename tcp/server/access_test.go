package server

import (
	"bytes"
	"fmt"
	"testing"
	"unsafe"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// What a session refuses, whatever its initiator knows: the requests here are plain bytes.

// halves are two regions side by side. Peers may only read the first, and only write the second.
type halves struct {
	*harness
	readable, writable, before []byte
}

const half = 64 << 10

// serveHalves serves host memory, or that of a device.
func serveHalves(t *testing.T, onDevice bool) *halves {
	h := &halves{}
	var on *staging.Device
	var memory []byte
	if onDevice {
		a := tcptest.Accelerate(t, tcptest.Blocks(2, staging.Granule))
		memory, on = a.Memory(2*half), a.Staging
	} else {
		memory = tcptest.Mapped(t, 2*half)
	}
	tcptest.Fill(memory, 1)
	h.harness = serve(t, Options{})
	h.readable, h.writable, h.before = memory[:half], memory[half:], bytes.Clone(memory)
	h.memory.addFor(h.readable, core.RemoteRead, on)
	h.memory.addFor(h.writable, core.RemoteWrite, on)
	return h
}

// unchanged checks that nothing was written, and that the log says who asked for what and why it was refused.
func (h *halves) unchanged(op string) {
	h.t.Helper()
	h.waitForSessions(0)
	require.True(h.t, bytes.Equal(h.before[:half], h.readable) && bytes.Equal(h.before[half:], h.writable))
	fields := h.waitForLog("data request rejected").ContextMap()
	require.Equal(h.t, op, fields["operation"])
	require.Contains(h.t, fields["reason"], core.ErrForbidden.Error())
	require.NotEmpty(h.t, fields["peer"])
}

func onHostAndDevice(t *testing.T, test func(t *testing.T, h *halves)) {
	for _, onDevice := range []bool{false, true} {
		t.Run(fmt.Sprintf("on a device %v", onDevice), func(t *testing.T) { test(t, serveHalves(t, onDevice)) })
	}
}

func TestAWriteToMemoryThatPeersMayOnlyReadChangesNothing(t *testing.T) {
	for _, length := range []int{1, 4096, half} {
		onHostAndDevice(t, func(t *testing.T, h *halves) {
			c := h.dial()
			c.Send(tcptest.WriteV2(hostmem.AddressOf(h.readable), tcptest.Pattern(length, 9)))
			c.ExpectStatus(wire.StatusForbidden)
			c.ExpectEnd()
			require.NoError(t, c.Conn.Close())
			h.unchanged("WRITE")
		})
		onHostAndDevice(t, func(t *testing.T, h *halves) {
			c := h.dial()
			c.Send(tcptest.WriteV1(hostmem.AddressOf(h.readable), tcptest.Pattern(length, 9)))
			_ = c.Conn.CloseWrite() // fails when the reset is here already
			c.ExpectReset()
			h.unchanged("WRITE")
		})
	}
}

func TestAReadOfMemoryThatPeersMayOnlyWriteIsNotAnswered(t *testing.T) {
	onHostAndDevice(t, func(t *testing.T, h *halves) {
		c := h.dial()
		c.Send(tcptest.ReadV2(h.writable))
		h.forbids(c, "READ")
	})
	onHostAndDevice(t, func(t *testing.T, h *halves) {
		c := h.dial()
		c.Send(tcptest.ReadV1(h.writable))
		c.ExpectReset()
		h.unchanged("READ")
	})
}

// The region of the last request is still pinned when the next one comes.
func TestARequestBehindOneThatIsAllowedIsCheckedByItself(t *testing.T) {
	onHostAndDevice(t, func(t *testing.T, h *halves) {
		c := h.dial()
		c.Send(tcptest.ReadV2(h.readable[:100]), tcptest.WriteV2(hostmem.AddressOf(h.readable), tcptest.Pattern(100, 9)),
			tcptest.ReadV2(h.readable[:100]))
		c.ExpectStatus(wire.StatusOK)
		c.Expect(h.before[:100])
		h.forbids(c, "WRITE")
	})
	onHostAndDevice(t, func(t *testing.T, h *halves) {
		c := h.dial()
		c.Send(tcptest.WriteV2(hostmem.AddressOf(h.writable), h.before[half:half+100]), tcptest.ReadV2(h.writable[:100]),
			tcptest.WriteV2(hostmem.AddressOf(h.writable), tcptest.Pattern(100, 9)))
		c.ExpectStatus(wire.StatusOK)
		h.forbids(c, "READ")
	})
}

func TestARangeAcrossRegionsOfDifferentAccessIsRejectedAsAWhole(t *testing.T) {
	onHostAndDevice(t, func(t *testing.T, h *halves) {
		both := h.readable[half-100 : half+100]
		for _, request := range [][]byte{tcptest.ReadV2(both), tcptest.WriteV2(hostmem.AddressOf(both), tcptest.Pattern(200, 9))} {
			c := h.dial()
			c.Send(request)
			c.ExpectStatus(wire.StatusRejected)
			c.ExpectEnd()
			require.NoError(t, c.Conn.Close())
			h.waitForSessions(0)
			require.True(t, bytes.Equal(h.before[:half], h.readable) && bytes.Equal(h.before[half:], h.writable))
		}
	})
}

// forbids expects that the session ends with a refusal, and that no byte was changed.
func (h *halves) forbids(c *tcptest.Client, operation string) {
	h.t.Helper()
	c.ExpectStatus(wire.StatusForbidden)
	c.ExpectEnd()
	require.NoError(h.t, c.Conn.Close())
	h.unchanged(operation)
}

func TestAPayloadForMemoryThatPeersMayOnlyReadIsNotFetched(t *testing.T) {
	onHostAndDevice(t, func(t *testing.T, h *halves) {
		c := h.dialSameHost()
		payload := tcptest.Mapped(t, 4096)
		tcptest.Fill(payload, 9)
		c.Send(tcptest.WriteByAddress(hostmem.AddressOf(h.readable), payload))
		h.forbids(c, "WRITE")
	})
}

func TestMemoryThatPeersMayOnlyWriteIsNotGranted(t *testing.T) {
	onHostAndDevice(t, func(t *testing.T, h *halves) {
		c := h.dialSameHost()
		c.Send(tcptest.ReadByAddress(h.writable[:10]))
		h.forbids(c, "READ")
	})
}

func TestAGrantEndsWithTheRegionThatPeersMayRead(t *testing.T) {
	h := serveHalves(t, false)
	h.memory.epoch.Store(77)
	c := h.dialSameHost()
	payload := tcptest.Mapped(t, 4096)
	c.Send(tcptest.ReadByAddress(h.readable[half-10:]), tcptest.WriteByAddress(hostmem.AddressOf(h.writable), payload))
	c.ExpectStatus(wire.StatusOK)
	c.ExpectGrant(wire.Grant{Addr: uint64(hostmem.AddressOf(h.readable)), Length: half, EpochAt: epochAt(h.memory), Epoch: 77})
	c.ExpectStatus(wire.StatusOK)
	require.Equal(t, payload, h.writable[:4096])
}

// epochAt is the address that grants have.
func epochAt(m *served) uint64 { return uint64(uintptr(unsafe.Pointer(&m.epoch))) }
