package tcp

import (
	"math/rand/v2"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

func TestScatteredBlocksArriveInBothDirections(t *testing.T) {
	target, initiator := newEngine(t), newEngine(t)
	const block, blocks = 4096 + 13, 300
	far, near := tcptest.Mapped(t, 2*block*blocks), tcptest.Mapped(t, 2*block*blocks)
	require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
	id, err := initiator.OpenSegment(target.Name())
	require.NoError(t, err)
	for i := range near {
		near[i] = byte(rand.Uint32())
	}
	for _, op := range []core.Opcode{core.Write, core.Read} {
		b, err := initiator.AllocateBatch(blocks)
		require.NoError(t, err)
		reqs := make([]core.Request, blocks)
		for i, place := range rand.Perm(blocks) {
			reqs[i] = core.Request{Opcode: op, Local: hostmem.AddressOf(near) + uintptr(2*i*block), Target: id,
				Remote: uint64(hostmem.AddressOf(far)) + uint64(2*place*block), Length: block}
		}
		require.NoError(t, initiator.Submit(b, reqs, nil))
		tcptest.Wait(t, b)
		require.NoError(t, b.Err())
		for _, r := range reqs {
			require.Equal(t, hostmem.At(r.Local, block), hostmem.At(uintptr(r.Remote), block))
		}
		for i := range near {
			near[i] = byte(rand.Uint32())
		}
		require.NoError(t, initiator.FreeBatch(b))
	}
}
