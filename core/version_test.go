package core_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// oneSegment is a store in which there is what a test has put there, under every name.
type oneSegment struct {
	metadata.Store
	shown atomic.Pointer[metadata.Descriptor]
}

func (s *oneSegment) Fetch(context.Context, string) (*metadata.Descriptor, error) {
	return s.shown.Load(), nil
}

// show puts a descriptor there that has one buffer, at addr.
func (s *oneSegment) show(version, addr uint64, identity string) {
	s.shown.Store(&metadata.Descriptor{
		Name: "peer", Protocol: "tcp", DataPort: 9, ProtoVersion: 2, Version: version, Identity: identity,
		Buffers: []metadata.Buffer{{Name: "cpu:0", Addr: addr, Length: 1}},
	})
}

// startVersioned starts an engine with such a store, which has read version 100 with a buffer at 1, and returns what it
// reads where the buffer is. The owner has no identity, as Mooncake's engines, unless there is one given.
func startVersioned(t *testing.T, identity string) (*core.Engine, *oneSegment, *transporttest.Transport, func() uint64) {
	t.Helper()
	store := &oneSegment{Store: metadatatest.NewDirectory().Store()}
	store.show(100, 1, identity)
	e, err := core.Start(core.Options{Name: "127.0.0.1", Config: core.DefaultConfig(), Log: zap.NewNop()}, store)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	transport := &transporttest.Transport{}
	install(t, e, transport)
	read := func() uint64 {
		_, err := e.OpenSegmentNoCache("peer")
		require.NoError(t, err, "the cached one stays")
		addr, err := e.FirstBuffer("peer")
		require.NoError(t, err)
		return addr
	}
	require.EqualValues(t, 1, read())
	return e, store, transport, read
}

func TestADescriptorThatIsStaleOrConflictsDoesNotReplaceTheCachedOne(t *testing.T) {
	_, store, _, read := startVersioned(t, "")
	for _, refused := range []uint64{1, 99, 100} {
		store.show(refused, 2, "")
		require.EqualValues(t, 1, read(), "version %d", refused)
	}
	store.show(101, 3, "")
	require.EqualValues(t, 3, read())
	store.show(0, 4, "")
	require.EqualValues(t, 4, read(), "the owner gives no versions, as older ones")
}

func TestASuccessorWhoseClockIsBehindIsTakenOnceItsPredecessorIsNotKnownToLive(t *testing.T) {
	before, after := strings.Repeat("a", 32), strings.Repeat("b", 32)
	e, store, transport, read := startVersioned(t, before)
	store.show(99, 2, after)
	require.EqualValues(t, 1, read(), "the predecessor was seen a moment ago")

	id := open(t, e, "peer")
	b, err := e.AllocateBatch(1)
	require.NoError(t, err)
	require.NoError(t, e.Submit(b, []core.Request{{Opcode: core.Write, Local: 1, Target: id, Remote: 1, Length: 1}}, nil))
	segment := transport.Held()[0].Segment
	segment.MarkUnverified()
	store.show(98, 3, before)
	require.EqualValues(t, 1, read(), "what the predecessor itself published before is stale")
	segment.MarkUnverified()
	store.show(99, 2, after)
	require.EqualValues(t, 2, read())
	transport.SettleAll(nil)
}
