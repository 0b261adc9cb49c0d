package tcp

import (
	"fmt"
	"testing"

	"kvferry/core/hostmem/hostmemtest"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"

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
						missing, good := hostmemtest.New(t, length), tcptest.Mapped(t, length)
						remote, local := missing.Memory[:length], good
						if whose == "initiator" {
							remote, local = local, remote
						}
						target, e := engine(t, path.config), engine(t, path.config)
						require.NoError(t, target.Register(sockio.AddressOf(remote), uint64(length), "cpu:0", true))
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
