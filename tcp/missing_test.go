package tcp

import (
	"fmt"
	"testing"
	"time"

	"kvferry/core/hostmem"
	"kvferry/core/hostmem/hostmemtest"

	"github.com/stretchr/testify/require"
)

// A page of memory that is swapped out, or in a file of another machine, may take long to come. Go's garbage collector, and
// with it the whole process, must not wait for whoever waits for the page.
func TestAPageThatIsMissingHoldsNobodyUpButItsTransfer(t *testing.T) {
	const long, short = 256 << 10, 100 // short ones pass through the read-ahead buffer of a session
	for _, path := range paths {
		for _, op := range opcodes {
			for _, length := range []int{long, short} {
				for _, whose := range []string{"target", "initiator"} {
					t.Run(fmt.Sprintf("%s/%v/%d bytes/%s", path.name, op, length, whose), func(t *testing.T) {
						missing, good := hostmemtest.New(t, length), mapped(t, length)
						remote, local := missing.Memory[:length], good
						if whose == "initiator" {
							remote, local = local, remote
						}
						target, e := engine(t, path.config), engine(t, path.config)
						require.NoError(t, target.Register(addressOf(remote), uint64(length), "cpu:0", true))
						b := submit(t, e, ask(op, local, open(t, e, target.Name()), remote))
						missing.AwaitFault(t)

						missing.Collect()
						others := startLoopback(t, op, 4, 4096, path.config)
						others.transfer(t)

						missing.Release(t)
						completes(t, b)
					})
				}
			}
		}
	}
}

// The kernel locks a TCP socket while it copies. A call in one direction waits for the page that one in the other direction
// waits for, and is told of as well.
func TestNeitherDirectionOfASocketKeepsTheSchedulerUnawareOfWaitingForTheOther(t *testing.T) {
	const length = 4096
	for _, sends := range []bool{true, false} {
		t.Run(fmt.Sprintf("sends=%v", sends), func(t *testing.T) {
			a, b := streams(t)
			missing, ours := hostmemtest.New(t, length), make([]byte, length)
			a.in.ours, a.out.ours = vectorOf(ours), vectorOf(ours)
			v, w := []ioVector{vectorOf(missing.Memory)}, []ioVector{vectorOf(ours)}
			_, err := b.send([]ioVector{vectorOf(mapped(t, length))})
			require.NoError(t, err)
			slow, other, held := a.send, a.receive, &a.in
			if !sends {
				slow, other, held = a.receive, a.send, &a.out
			}
			done := make(chan error, 2)
			go func() { _, err := slow(v); done <- err }()
			missing.AwaitFault(t)
			go func() { _, err := other(w); done <- err }()
			require.Eventually(t, func() bool { return held.inTold.Load() || held.inRaw.Load() }, patience, time.Millisecond)
			missing.Collect()
			missing.Release(t)
			require.NoError(t, <-done)
			require.NoError(t, <-done)
		})
	}
}

func TestTheSchedulerIsToldOnlyOfCallsWhoseMemoryWasNotTouchedAMomentAgo(t *testing.T) {
	a, b := streams(t)
	from, to := mapped(t, 4096), mapped(t, 8192)
	for _, memory := range [][]byte{from, to} {
		hostmem.Forget(addressOf(memory), uint64(len(memory)))
	}
	free := func(h *half, v []ioVector) bool {
		h.use(v)
		return h.inMemory()
	}
	send, receive := []ioVector{vectorOf(from)}, []ioVector{vectorOf(to)}
	require.False(t, free(&a.out, send))
	require.False(t, free(&b.in, receive))
	_, err := a.send(send)
	require.NoError(t, err)
	_, err = b.receive(receive)
	require.NoError(t, err)
	require.True(t, free(&a.out, send))
	require.True(t, free(&b.in, []ioVector{vectorOf(to[:4096])}))
	require.False(t, free(&b.in, receive), "the second page was not received into")
	require.False(t, free(&a.in, send), "what was sent has yet to be written")
	require.False(t, free(&a.out, []ioVector{{addressOf(from), mostRaw + 1}}))
	b.in.ours = vectorOf(to)
	require.True(t, free(&b.in, receive), "memory of the library's own")
}
