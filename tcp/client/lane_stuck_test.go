package client

import (
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/hostmem/hostmemtest"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// A page of the peer's, or of the caller's, that never comes: the transfer can be given up, its memory cannot be taken back
// before the page comes, and other transfers go on.
func TestATransferWhosePagesNeverComeCanBeGivenUpAndItsMemoryIsNotGivenBack(t *testing.T) {
	testStuck = 50 * time.Millisecond
	defer func() { testStuck = 0 }()
	tcptest.Waits(t, core.Waits{Grace: 10 * time.Millisecond, Ending: 2 * time.Second})
	for _, one := range []struct {
		name                   string
		op                     core.Opcode
		sameHost, remoteAbsent bool
	}{
		{"READ from a process whose page does not come", core.Read, true, true},
		{"WRITE from a page that does not come, on one host", core.Write, true, false},
		{"WRITE from a page that does not come, over TCP", core.Write, false, false},
		{"READ to a page that does not come, over TCP", core.Read, false, false},
		{"READ to a page that does not come, on one host", core.Read, true, false},
	} {
		t.Run(one.name, func(t *testing.T) {
			const length = 64 << 10
			slow := hostmemtest.New(t, length)
			far, near, other := tcptest.Mapped(t, 2*length), tcptest.Mapped(t, length), tcptest.Mapped(t, length)
			change := func(c *core.Config) { c.SameHost = one.sameHost }
			target, e := newEngine(t, change), newEngine(t, change)
			local, remote := slow.Memory, far[:length]
			if one.remoteAbsent {
				local, remote = near, slow.Memory
				require.NoError(t, target.Register(hostmem.AddressOf(remote), length, "cpu:0", true))
			}
			require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
			require.NoError(t, e.Register(hostmem.AddressOf(local), length, "cpu:0", true))
			id := tcptest.OpenSegment(t, e, target.Name())

			var b *core.Batch
			tcptest.Returns(t, "Submit", func() { b = tcptest.Submit(t, e, tcptest.Ask(one.op, local, id, remote)) })
			slow.AwaitFault(t)
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(one.op, other, id, far[length:])))
			tcptest.Returns(t, "DiscardBatch", func() { require.NoError(t, e.DiscardBatch(b)) })
			tcptest.Returns(t, "Unregister", func() { require.ErrorIs(t, e.Unregister(hostmem.AddressOf(local)), core.ErrInUse) })
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(one.op, other, id, far[length:])))
			slow.Release(t)
			require.Eventually(t, func() bool { return e.Unregister(hostmem.AddressOf(local)) == nil }, tcptest.Patience, 20*time.Millisecond)
		})
	}
}
