package server

import (
	"fmt"
	"os"
	"testing"

	"kvferry/core/hostmem"
	"kvferry/core/hostmem/hostmemtest"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

func TestASessionThatWasEndedWhileItWasStuckServesNothingThatItHasRead(t *testing.T) {
	source, memory, other := hostmemtest.New(t, 4096), tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	h := serve(t, Options{}, memory, other)
	c := h.dialSameHost()
	c.Send(tcptest.WriteByAddress(hostmem.AddressOf(memory), source.Memory),
		tcptest.WriteV2(hostmem.AddressOf(memory), tcptest.Pattern(100, 1)), // what is to be fetched for the same place is fetched first
		tcptest.WriteV2(hostmem.AddressOf(other), tcptest.Pattern(100, 1)))
	source.AwaitFault(t)
	held, free := h.memory.regions[0], h.memory.regions[1]

	tcptest.Returns(t, "evict", func() { h.server.Evict(held) })
	require.Equal(t, []string{fmt.Sprintf("a transfer of process %d", os.Getpid())}, h.server.Holders(held))
	require.Empty(t, h.server.Holders(free))
	require.Equal(t, []string{fmt.Sprintf("one from process %d, memory %v", os.Getpid(), held.Range)}, h.server.Stuck())

	source.Release(t)
	h.waitForSessions(0)
	require.Equal(t, make([]byte, 100), other[:100], "a request was served after the session had been ended")
	require.Empty(t, h.server.Holders(held))
}
