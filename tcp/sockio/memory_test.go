package sockio

import (
	"fmt"
	"testing"
	"time"

	"kvferry/core/hostmem"
	"kvferry/core/hostmem/hostmemtest"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// The kernel locks a TCP socket while it copies. A call in one direction waits for the page that a call in the other direction
// waits for, so it is announced as well.
func TestACallIsAnnouncedWhileTheOtherDirectionWaitsForAPage(t *testing.T) {
	const length = 4096
	for _, sends := range []bool{true, false} {
		t.Run(fmt.Sprintf("sends=%v", sends), func(t *testing.T) {
			a, b := sockets(t)
			missing, ours := hostmemtest.New(t, length), make([]byte, length)
			a.in.ours, a.out.ours = VectorOf(ours), VectorOf(ours)
			v, w := []Vector{VectorOf(missing.Memory)}, []Vector{VectorOf(ours)}
			_, err := b.Send([]Vector{VectorOf(tcptest.Mapped(t, length))})
			require.NoError(t, err)
			slow, other, held := a.Send, a.Receive, &a.in
			if !sends {
				slow, other, held = a.Receive, a.Send, &a.out
			}
			done := make(chan error, 2)
			go func() { _, err := slow(v); done <- err }()
			missing.AwaitFault(t)
			go func() { _, err := other(w); done <- err }()
			require.Eventually(t, func() bool { return held.inAnnounced.Load() || held.inRaw.Load() }, tcptest.Patience, time.Millisecond)
			missing.Collect()
			missing.Release(t)
			require.NoError(t, <-done)
			require.NoError(t, <-done)
		})
	}
}

func TestWhoMustNotWaitReceivesNothingWhileTheOtherDirectionWaitsForAPage(t *testing.T) {
	const length = 4096
	a, b := sockets(t)
	missing, fresh := hostmemtest.New(t, length), tcptest.Mapped(t, length)
	hostmem.Forget(hostmem.AddressOf(fresh), length) // a call that touches it is announced
	sent := tcptest.Pattern(length, 1)
	_, err := b.Send([]Vector{VectorOf(sent)})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { _, err := a.Send([]Vector{VectorOf(missing.Memory)}); done <- err }()
	missing.AwaitFault(t)
	receive := func() (n int, again bool, err error) { return a.ReceiveUnheld([]Vector{VectorOf(fresh)}, false) }
	var again bool
	tcptest.Returns(t, "ReceiveUnheld", func() { _, again, err = receive() })
	require.NoError(t, err)
	require.True(t, again)
	missing.Release(t)
	require.NoError(t, <-done)
	require.Eventually(t, func() bool { _, again, err = receive(); return !again }, tcptest.Patience, time.Millisecond)
	require.NoError(t, err)
	require.Equal(t, sent, fresh)
}

func TestOnlyCallsWhoseMemoryWasNotTouchedAMomentAgoAreAnnounced(t *testing.T) {
	a, b := sockets(t)
	from, to := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 8192)
	for _, memory := range [][]byte{from, to} {
		hostmem.Forget(hostmem.AddressOf(memory), uint64(len(memory)))
	}
	free := func(d *direction, v []Vector) bool {
		d.use(v)
		return d.inMemory()
	}
	send, receive := []Vector{VectorOf(from)}, []Vector{VectorOf(to)}
	require.False(t, free(&a.out, send))
	require.False(t, free(&b.in, receive))
	_, err := a.Send(send)
	require.NoError(t, err)
	_, err = b.Receive(receive)
	require.NoError(t, err)
	require.True(t, free(&a.out, send))
	require.True(t, free(&b.in, []Vector{VectorOf(to[:4096])}))
	require.False(t, free(&b.in, receive), "the second page was not received into")
	require.False(t, free(&a.in, send), "what was sent has yet to be written")
	require.False(t, free(&a.out, []Vector{{hostmem.AddressOf(from), MaxRawBytes + 1}}))
	b.in.ours = VectorOf(to)
	require.True(t, free(&b.in, receive), "memory of the library's own")
}
