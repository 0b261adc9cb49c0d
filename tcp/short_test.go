package tcp

import (
	"testing"
	"time"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

func TestASessionTellsOfShortRequests(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
	h := serve(t, targetOptions{}, memory)
	c := h.dialNeighbour()
	send := func(length int) {
		c.send(writeByAddress(sockio.AddressOf(memory), payload[:length]))
		c.expectStatus(wire.StatusOK)
	}
	before := copies.LastShort()
	send(4096)
	require.Eventually(t, func() bool { return copies.LastShort() != before }, tcptest.Patience, time.Microsecond)
	before = copies.LastShort()
	send(1 << 20)
	send(1 << 20) // the session waited for this one, so it is done with the other
	require.Equal(t, before, copies.LastShort())
}

func TestAnInitiatorTellsOfShortTransfers(t *testing.T) {
	_, e, memory, local, id := neighbours(t, 1<<20, oneLane)
	completes(t, submit(t, e, ask(core.Read, local, id, memory)))
	read := func(length int) bool {
		before := copies.LastShort()
		completes(t, submit(t, e, ask(core.Read, local[:length], id, memory[:length])))
		return copies.LastShort() != before
	}
	require.True(t, read(4096))
	require.False(t, read(1<<20))
}
