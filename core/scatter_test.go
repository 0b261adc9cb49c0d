package core_test

import (
	"context"
	"math"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// blocksOfTwo are two blocks of one region, and one of another that they fill whole.
func blocksOfTwo() *core.Scatter {
	return &core.Scatter{
		Opcode: core.Read,
		Regions: []core.ScatterRegion{
			{LocalBase: 0x10000, LocalCapacity: 0x100, RemoteBase: 0x20000, RemoteCapacity: 0x200, Blocks: 2},
			{LocalBase: 0x30000, LocalCapacity: 1, RemoteBase: 0x40000, RemoteCapacity: 1, Blocks: 0},
			{LocalBase: 0x50000, LocalCapacity: 9, RemoteBase: 0x60000, RemoteCapacity: 9, Blocks: 1},
		},
		LocalOffsets: []uint64{0xf0, 0, 0}, RemoteOffsets: []uint64{0, 0x1f0, 0}, Lengths: []uint64{0x10, 0x10, 9},
	}
}

func TestBlocksAreAtTheirOffsetsInTheirRegions(t *testing.T) {
	p := startPair(t, nil)
	s := blocksOfTwo()
	b, err := p.SubmitScatter(p.peer.Name(), s)
	require.NoError(t, err)
	clear(s.Lengths) // the caller's again

	read := func(local uintptr, remote, length uint64) core.Request {
		return core.Request{Opcode: core.Read, Local: local, Target: p.segment, Remote: remote, Length: length}
	}
	require.Equal(t, []core.Request{
		read(0x100f0, 0x20000, 0x10), read(0x10000, 0x201f0, 0x10), read(0x50000, 0x60000, 9),
	}, requestsOf(p.transport))
	p.transport.SettleAll(nil)
	require.Equal(t, core.Summary{Tasks: 3, Completed: 3, Bytes: 0x29}, b.Summary())
}

func TestABlockOutsideItsRegionIsRefused(t *testing.T) {
	p := startPair(t, nil)
	for name, spoil := range map[string]func(*core.Scatter){
		"one byte past the local capacity":    func(s *core.Scatter) { s.LocalOffsets[0]++ },
		"one byte past the remote capacity":   func(s *core.Scatter) { s.RemoteOffsets[1]++ },
		"longer than the region":              func(s *core.Scatter) { s.Lengths[2]++ },
		"an offset and a length that wrap":    func(s *core.Scatter) { s.LocalOffsets[0], s.Lengths[0] = math.MaxUint64, 2 },
		"a region that wraps":                 func(s *core.Scatter) { s.Regions[2].RemoteBase = math.MaxUint64 - 3 },
		"more blocks in regions than are":     func(s *core.Scatter) { s.Regions[2].Blocks = 2 },
		"more blocks than fit a number":       func(s *core.Scatter) { s.Regions[0].Blocks = math.MaxUint64 },
		"a block that belongs to no region":   func(s *core.Scatter) { s.Regions = s.Regions[:2] },
		"fewer offsets than there are blocks": func(s *core.Scatter) { s.RemoteOffsets = s.RemoteOffsets[1:] },
	} {
		t.Run(name, func(t *testing.T) {
			bad := blocksOfTwo()
			spoil(bad)
			_, err := p.SubmitScatter(p.peer.Name(), bad)
			requireCode(t, status.InvalidArgument, err)
		})
	}
	require.Zero(t, p.transport.Calls().Submit)
}

// slowStore answers nothing about segments until it is told to.
type slowStore struct {
	metadata.Store
	asked  chan struct{} // has an element for each question
	answer chan struct{} // closed when they are to be answered
}

func (s *slowStore) Fetch(ctx context.Context, segment string) (*metadata.Descriptor, error) {
	s.asked <- struct{}{}
	<-s.answer
	return s.Store.Fetch(ctx, segment)
}

// startSlow starts an engine that waits for its peers' descriptors, and a peer.
func startSlow(t *testing.T) (*core.Engine, *slowStore, *transporttest.Transport, string) {
	t.Helper()
	d := metadatatest.NewDirectory()
	peer := startPeer(t, d)
	store := &slowStore{Store: d.Store(), asked: make(chan struct{}, 9), answer: make(chan struct{})}
	e, err := core.Start(core.Options{Name: "127.0.0.1", Config: core.DefaultConfig(), Log: zap.NewNop()}, store)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	transport := &transporttest.Transport{}
	install(t, e, transport)
	return e, store, transport, peer.Name()
}

func TestASegmentIsOpenedWhileTheBatchWaits(t *testing.T) {
	e, store, transport, peer := startSlow(t)
	b, err := e.SubmitScatter(peer, blocksOfTwo())
	require.NoError(t, err)
	receive(t, store.asked)
	require.False(t, b.Done())
	require.Equal(t, core.Summary{Tasks: 3}, b.Summary())
	require.Empty(t, transport.Held())

	close(store.answer)
	eventually(t, func() bool { return len(requestsOf(transport)) == 3 })
	transport.SettleAll(nil)
	wait(t, b)
	require.NoError(t, b.Err())
	require.NoError(t, e.FreeBatch(b))
}

func TestABatchThatIsGivenUpBeforeItsSegmentIsOpenEndsAtOnceAndStartsNothing(t *testing.T) {
	e, store, transport, peer := startSlow(t)
	b, err := e.SubmitScatter(peer, blocksOfTwo())
	require.NoError(t, err)
	receive(t, store.asked)

	require.NoError(t, e.DiscardBatch(b))
	require.Equal(t, core.Summary{Tasks: 3, Failed: 3}, b.Summary())
	close(store.answer)
	require.NoError(t, e.Close())
	require.Zero(t, transport.Calls().Submit)
}

func TestUnregisteringMemoryEndsABatchThatWaitsForItsSegment(t *testing.T) {
	e, store, transport, peer := startSlow(t)
	e.SetGrace(0)
	memory := pages(t, 1<<16)
	require.NoError(t, e.Register(at(memory), 1<<16, "*", true))
	s := blocksOfTwo()
	s.Regions[2].LocalBase = uint64(at(memory))
	b, err := e.SubmitScatter(peer, s)
	require.NoError(t, err)
	receive(t, store.asked)

	require.NoError(t, e.Unregister(at(memory)))
	wait(t, b)
	requireCode(t, status.AddressNotRegistered, b.Err())
	close(store.answer)
	require.NoError(t, e.Close())
	require.Zero(t, transport.Calls().Submit)
}

func TestASegmentThatCannotBeOpenedFailsTheBatch(t *testing.T) {
	p := startPair(t, nil)
	b, err := p.SubmitScatter("nobody:1", blocksOfTwo())
	require.NoError(t, err)
	wait(t, b)
	require.Error(t, b.Err())
	require.Equal(t, core.Summary{Tasks: 3, Failed: 3}, b.Summary())
	require.NoError(t, p.FreeBatch(b))
}

func TestNoBlocksAreABatchThatHasCompleted(t *testing.T) {
	p := startPair(t, nil)
	b, err := p.SubmitScatter("nobody:1", &core.Scatter{Opcode: core.Write})
	require.NoError(t, err)
	require.True(t, b.Done())
	require.NoError(t, b.Err())
}
