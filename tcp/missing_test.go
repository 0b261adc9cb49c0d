package tcp

import (
	"fmt"
	"testing"

	"kvferry/core/hostmem"
	"kvferry/core/hostmem/hostmemtest"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// A page of memory that is swapped out, or in a file of another machine, may take long to come. Go's garbage collector, and
// with it the whole process, must not wait for whoever waits for the page.
func TestAPageThatIsMissingHoldsNobodyUpButItsTransfer(t *testing.T) {
	const long, short = 256 << 10, 100 // short ones pass through the read-ahead buffer of a session
	for _, path := range paths {
		for _, op := range tcptest.Opcodes {
			for _, length := range []int{long, short} {
				for _, whose := range []string{"target", "initiator"} {
					t.Run(fmt.Sprintf("%s/%v/%d bytes/%s", path.name, op, length, whose), func(t *testing.T) {
						missing, good := hostmemtest.New(t, length), tcptest.Mapped(t, length)
						remote, local := missing.Memory[:length], good
						if whose == "initiator" {
							remote, local = local, remote
						}
						target, e := newEngine(t, path.config), newEngine(t, path.config)
						require.NoError(t, target.Register(hostmem.AddressOf(remote), uint64(length), "cpu:0", true))
						b := tcptest.Submit(t, e, tcptest.Ask(op, local, tcptest.OpenSegment(t, e, target.Name()), remote))
						missing.AwaitFault(t)

						missing.Collect()
						others := startLoopback(t, op, 4, 4096, path.config)
						others.transfer(t)

						missing.Release(t)
						tcptest.Completes(t, b)
					})
				}
			}
		}
	}
}

// The kernel locks a TCP socket while a call that sends waits for a page of the transfer's memory. A thread that waits for the
// answer polls that socket.
func TestAThreadThatWaitsForATransferDoesNotWaitForItsPages(t *testing.T) {
	const length = 4096
	for _, path := range paths {
		for _, op := range tcptest.Opcodes {
			t.Run(fmt.Sprintf("%s/%v", path.name, op), func(t *testing.T) {
				missing, far := hostmemtest.New(t, length), tcptest.Mapped(t, length)
				target, e := newEngine(t, path.config), newEngine(t, path.config)
				require.NoError(t, target.Register(hostmem.AddressOf(far), length, "cpu:0", true))
				id := tcptest.OpenSegment(t, e, target.Name())
				b := tcptest.Submit(t, e, tcptest.Ask(op, missing.Memory[:length], id, far))
				missing.AwaitFault(t)

				tcptest.Returns(t, "Assist", func() { e.Assist(b, id) })
				missing.Release(t)
				tcptest.Completes(t, b)
			})
		}
	}
}
