package tcp

import (
	"math/rand/v2"
	"sync"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// TestWaitersThatAssistGetTheirBytes protects the lane from the receiver and any number of waiters who receive in turn.
func TestWaitersThatAssistGetTheirBytes(t *testing.T) {
	target, initiator := newEngine(t), newEngine(t)
	const block, waiters, rounds = 4096, 4, 100
	far, near := tcptest.Mapped(t, waiters*block), tcptest.Mapped(t, waiters*block)
	require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
	id, err := initiator.OpenSegment(target.Name())
	require.NoError(t, err)
	var all sync.WaitGroup
	for w := range uintptr(waiters) {
		all.Go(func() {
			mine := near[w*block : (w+1)*block]
			move := func(op core.Opcode) bool {
				b, err := initiator.AllocateBatch(1)
				if err == nil {
					err = initiator.Submit(b, []core.Request{{Opcode: op, Local: hostmem.AddressOf(mine), Target: id,
						Remote: uint64(hostmem.AddressOf(far) + w*block), Length: block}}, nil)
				}
				initiator.Assist(b, id)
				done := make(chan struct{})
				b.OnDone(func() { close(done) })
				<-done
				return err == nil && b.Err() == nil && initiator.FreeBatch(b) == nil
			}
			for range rounds {
				sent := byte(rand.Uint32())
				for i := range mine {
					mine[i] = sent
				}
				written := move(core.Write)
				clear(mine)
				if !written || !move(core.Read) || mine[0] != sent || mine[block-1] != sent {
					t.Error("a block did not come back as it was sent")
					return
				}
			}
		})
	}
	all.Wait()
}
