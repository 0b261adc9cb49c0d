package client

import (
	"testing"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

func TestAnInitiatorTellsOfShortTransfers(t *testing.T) {
	_, e, memory, local, id := sameHost(t, 1<<20, tcptest.OneLane)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, memory)))
	read := func(length int) bool {
		before := testLimiter.LastShort()
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local[:length], id, memory[:length])))
		return testLimiter.LastShort() != before
	}
	require.True(t, read(4096))
	require.False(t, read(1<<20))
}
