package tcp

import (
	"math/rand/v2"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

func engine(t testing.TB, change ...func(*core.Config)) *core.Engine {
	t.Helper()
	config := core.DefaultConfig()
	config.SameHost = false // engines stand for those of several hosts
	for _, f := range change {
		f(&config)
	}
	e, err := core.New(core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: config, Log: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.Close() })
	_, err = e.Install("tcp", Open)
	require.NoError(t, err)
	return e
}

func wait(t testing.TB, b *core.Batch) {
	t.Helper()
	done := make(chan struct{})
	b.OnDone(func() { close(done) })
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("the batch does not end: %+v", b.Summary())
	}
}

func TestScatteredBlocksArriveInBothDirections(t *testing.T) {
	target, initiator := engine(t), engine(t)
	const block, blocks = 4096 + 13, 300
	far, near := tcptest.Mapped(t, 2*block*blocks), tcptest.Mapped(t, 2*block*blocks)
	require.NoError(t, target.Register(sockio.AddressOf(far), uint64(len(far)), "cpu:0", true))
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
			reqs[i] = core.Request{Opcode: op, Local: sockio.AddressOf(near) + uintptr(2*i*block), Target: id,
				Remote: uint64(sockio.AddressOf(far)) + uint64(2*place*block), Length: block}
		}
		require.NoError(t, initiator.Submit(b, reqs, nil))
		wait(t, b)
		require.NoError(t, b.Err())
		for _, r := range reqs {
			require.Equal(t, core.MemoryAt(r.Local, block), core.MemoryAt(uintptr(r.Remote), block))
		}
		for i := range near {
			near[i] = byte(rand.Uint32())
		}
		require.NoError(t, initiator.FreeBatch(b))
	}
}
