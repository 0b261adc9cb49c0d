package tcp

import (
	"fmt"
	"os"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/hostmem/hostmemtest"
	"kvferry/core/status"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

func TestUnregisterOfMemoryThatAStuckCopyWritesFailsAndTheEngineGoesOn(t *testing.T) {
	tcptest.Waits(t, core.Waits{Grace: 100 * time.Millisecond, Ending: 2 * time.Second})
	target, e, memory, local, id := sameHost(t, 64<<10)
	other, bystander := tcptest.Mapped(t, 64<<10), newEngine(t, tcptest.OnOneHost)
	require.NoError(t, target.Register(hostmem.AddressOf(other), uint64(len(other)), "cpu:0", true))
	theirs := tcptest.OpenSegment(t, bystander, target.Name())
	source := hostmemtest.New(t, 8192)
	hostmem.Now().Note(hostmem.AddressOf(source.Memory), 8192, hostmem.Reading) // it was there a moment ago
	stuck := tcptest.Submit(t, e, tcptest.Ask(core.Write, source.Memory, id, memory))
	source.AwaitFault(t)

	unregistered := make(chan error, 1)
	go func() { unregistered <- target.Unregister(hostmem.AddressOf(memory)) }()
	for range 10 {
		tcptest.Completes(t, tcptest.Submit(t, bystander, tcptest.Ask(core.Write, local, theirs, other), tcptest.Ask(core.Read, local, theirs, other)))
	}
	err := <-unregistered
	require.ErrorIs(t, err, core.ErrInUse)
	require.Equal(t, status.BatchBusy, status.Of(err, -1))
	require.ErrorContains(t, err, fmt.Sprintf("%#x+%d by a transfer of process %d", hostmem.AddressOf(memory), len(memory), os.Getpid()))
	require.Error(t, target.Register(hostmem.AddressOf(memory), 4096, "cpu:0", true))
	tcptest.Completes(t, tcptest.Submit(t, bystander, tcptest.Ask(core.Write, local, theirs, other)))

	source.Release(t)
	require.NoError(t, target.Unregister(hostmem.AddressOf(memory)))
	require.NoError(t, target.Register(hostmem.AddressOf(memory), 4096, "cpu:0", true))
	require.NoError(t, e.DiscardBatch(stuck))
}

func TestCloseWithAStuckCopyNamesItAndEndsAllElse(t *testing.T) {
	target, e, memory, local, id := sameHost(t, 64<<10)
	other := newEngine(t, tcptest.OnOneHost)
	source := hostmemtest.New(t, 8192)
	hostmem.Now().Note(hostmem.AddressOf(source.Memory), 8192, hostmem.Reading) // it was there a moment ago
	stuck := tcptest.Submit(t, e, tcptest.Ask(core.Write, source.Memory, id, memory))
	source.AwaitFault(t)
	tcptest.Completes(t, tcptest.Submit(t, other, tcptest.Ask(core.Read, local, tcptest.OpenSegment(t, other, target.Name()), memory)))

	transport := transportOf(t, target)
	transport.ending = 10 * time.Millisecond
	for range 2 {
		var err error
		tcptest.Returns(t, "Close", func() { err = transport.Close() })
		require.ErrorIs(t, err, core.ErrInUse)
		require.ErrorContains(t, err, fmt.Sprintf("one from process %d, memory %#x+%d", os.Getpid(), hostmem.AddressOf(memory), len(memory)))
	}
	require.Eventually(t, func() bool { return len(transport.server.Links()) > 0 && connections(transport) == 1 }, tcptest.Patience, time.Millisecond)
	source.Release(t)
	transport.ending = time.Minute
	require.NoError(t, transport.Close())
	require.NoError(t, target.Close())
	require.NoError(t, e.DiscardBatch(stuck))
}

// connections is how many there are to a transport's target.
func connections(t *Transport) (n int) {
	for _, link := range t.server.Links() {
		n += link.Connections
	}
	return n
}

func TestCloseTellsOfConnectionsToSegmentsThatWereRemoved(t *testing.T) {
	whole := transportOf(t, newEngine(t))
	stuck := &Transport{client: whole.client, server: whole.server, ended: make(chan struct{})}
	stuck.closing.Do(func() {}) // whole is closed with its engine
	err := stuck.Close()
	require.ErrorIs(t, err, core.ErrInUse)
	require.ErrorContains(t, err, "segments that were removed")
}
