package core_test

import (
	"context"
	"sync"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// faultOf makes one operation fail, and lets the others pass.
func faultOf(op metadatatest.Operation, err error) func(metadatatest.Operation, string) error {
	return func(o metadatatest.Operation, _ string) error {
		if o == op {
			return err
		}
		return nil
	}
}

// opened is the pair's segment itself.
func (p *pair) opened(t *testing.T) *core.Segment {
	t.Helper()
	b := p.batch(t, 1)
	held := p.submit(t, b, p.writes(1)...)
	held.SettleRest(nil)
	return held.Segment
}

func TestAnIdOfAClosedEngineNamesNoSegmentOfAnother(t *testing.T) {
	closed, p := startPair(t, nil), startPair(t, nil)
	require.NoError(t, closed.Close())
	require.NotEqual(t, closed.segment, p.segment)
	stale := core.Request{Opcode: core.Write, Local: 1, Target: closed.segment, Remote: 1, Length: 1}
	requireCode(t, status.InvalidArgument, p.Submit(p.batch(t, 1), []core.Request{stale}, nil))
	requireCode(t, status.Metadata, p.Notify(closed.segment, hello))
	require.Zero(t, p.transport.Calls().Submit)
}

func TestOpenSegment(t *testing.T) {
	p := startPair(t, nil)
	require.Greater(t, p.segment, core.LocalSegment, "remote ids start at 1")
	require.Equal(t, p.segment, open(t, p.Engine, p.peer.Name()))
	require.Equal(t, p.segment, open(t, p.Engine, "///"+p.peer.Name()))
	require.Equal(t, core.LocalSegment, open(t, p.Engine, p.Name()))
	require.Equal(t, core.LocalSegment, open(t, p.Engine, "/"+p.Name()))
	require.Equal(t, 1, p.directory.Fetches(p.peer.Name()), "the descriptor is cached")
	require.Equal(t, p.segment+1, open(t, p.Engine, startPeer(t, p.directory).Name()))

	for _, name := range []string{"", "/", "//"} {
		id, err := p.OpenSegment(name)
		requireCode(t, status.InvalidArgument, err)
		require.ErrorContains(t, err, "the segment name is empty")
		require.Negative(t, id)
		require.ErrorContains(t, p.RemoveLocalSegment(name), "the segment name is empty")
		require.ErrorContains(t, p.Probe(name), "the segment name is empty")
		_, err = p.Start(towards(name))
		require.ErrorContains(t, err, "the segment name is empty")
		_, err = p.SubmitScatter(name, &core.Scatter{})
		require.ErrorContains(t, err, "the segment name is empty")
	}
	id, err := p.OpenSegment("nobody:1")
	requireCode(t, status.Metadata, err)
	require.ErrorContains(t, err, "nobody:1")
	require.Negative(t, id)
}

func TestEverySpellingOfTheOwnNameIsTheOwnSegment(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), func(o *core.Options) { o.Metadata = metadata.P2P })
	install(t, e, &transporttest.Transport{})
	for _, name := range []string{e.Name(), "/" + e.Name(), e.Name() + ":npu_3"} {
		id, err := e.OpenSegment(name)
		require.NoError(t, err, name)
		require.Equal(t, core.LocalSegment, id, name)
		require.NoError(t, e.Probe(name), name)
	}
}

func TestALinkLocalAddressThatCannotBeConnectedToIsExplained(t *testing.T) {
	e, _ := startNamed(t, "127.0.0.1", nil)
	install(t, e, &transporttest.Transport{})
	for name, reason := range map[string]string{
		"[fe80::1]:15858":       "fe80::1 is a link-local address without its interface",
		"fe80::1%nosuch0:15858": `this machine has no interface "nosuch0"`,
	} {
		_, err := e.OpenSegment(name)
		require.ErrorContains(t, err, reason)
		require.NotContains(t, err.Error(), "without a port")
	}
}

func TestOpenSegmentBeforeATransportIsInstalled(t *testing.T) {
	d := metadatatest.NewDirectory()
	peer, e := startPeer(t, d), startEngine(t, d, nil)
	_, err := e.OpenSegment(peer.Name())
	requireCode(t, status.NotSupportedTransport, err)
}

func TestManyOpensOfOneNameGiveOneID(t *testing.T) {
	p := startPair(t, nil)
	other := startPeer(t, p.directory)
	var all sync.WaitGroup
	ids := make([]core.SegmentID, 32)
	for i := range ids {
		all.Go(func() { ids[i], _ = p.OpenSegment(other.Name()) })
	}
	all.Wait()
	for _, id := range ids {
		require.Equal(t, p.segment+1, id)
	}
	require.Equal(t, p.segment+2, open(t, p.Engine, startPeer(t, p.directory).Name()), "and use up no other")
}

func TestOpenSegmentNoCacheFetchesAgain(t *testing.T) {
	p := startPair(t, nil)
	buffer := pages(t, 4096)
	require.NoError(t, p.peer.Register(at(buffer), 4096, "cpu:1", true))
	segment := p.opened(t)
	require.Empty(t, segment.Descriptor().Buffers)
	id, err := p.OpenSegmentNoCache(p.peer.Name())
	require.NoError(t, err)
	require.Equal(t, p.segment, id)
	require.Equal(t, []metadata.Buffer{{Name: "cpu:1", Addr: uint64(at(buffer)), Length: 4096}}, segment.Descriptor().Buffers)

	p.directory.SetFault(faultOf(metadatatest.Fetch, errBroken))
	id, err = p.OpenSegmentNoCache(p.peer.Name())
	require.NoError(t, err, "that a known segment's owner does not answer is no error")
	require.Equal(t, p.segment, id)
	require.Len(t, segment.Descriptor().Buffers, 1, "what is cached stays")
	_, err = p.OpenSegmentNoCache("nobody:1")
	require.ErrorIs(t, err, errBroken)
}

func TestDisabledCacheFetchesAtEachUse(t *testing.T) {
	p := startPair(t, func(o *core.Options) { o.Config.DisableMetaCache = true })
	before := p.directory.Fetches(p.peer.Name())
	open(t, p.Engine, p.peer.Name())
	require.Equal(t, before+1, p.directory.Fetches(p.peer.Name()))
	b := p.batch(t, 3)
	p.submit(t, b, p.writes(1, 1, 1)...).SettleRest(nil)
	require.Equal(t, before+2, p.directory.Fetches(p.peer.Name()), "once for each submission")
}

func TestRemovedSegmentIsForgotten(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 2)
	segment := p.submit(t, b, p.writes(10)...).Segment
	require.NoError(t, p.RemoveLocalSegment("/"+p.peer.Name()))
	require.Equal(t, 1, p.transport.Calls().Forget)
	require.Equal(t, []core.State{failed}, states(t, b), "what the transport held for it")
	requireCode(t, status.InvalidArgument, p.Submit(b, p.writes(10), nil))
	requireCode(t, status.Metadata, p.Notify(p.segment, hello))
	_, err := segment.Refresh(t.Context(), segment.Descriptor())
	require.NoError(t, err, "who still holds it can use it")

	again := open(t, p.Engine, p.peer.Name())
	require.NotEqual(t, p.segment, again)
	require.Positive(t, again)
	require.NoError(t, p.RemoveLocalSegment("nobody:1"))
	require.NoError(t, p.RemoveLocalSegment(p.Name()))
	require.Equal(t, 1, p.transport.Calls().Forget)
	requireCode(t, status.InvalidArgument, p.RemoveLocalSegment(""))
	requireCode(t, status.InvalidArgument, p.RemoveLocalSegment("//"))
}

func TestRefreshFetchesOnlyWhatNobodyHasReplaced(t *testing.T) {
	p := startPair(t, nil)
	segment := p.opened(t)
	stale := segment.Descriptor()
	fresh, err := segment.Refresh(t.Context(), stale)
	require.NoError(t, err)
	require.NotSame(t, stale, fresh)
	require.Same(t, fresh, segment.Descriptor())
	fetches := p.directory.Fetches(p.peer.Name())
	again, err := segment.Refresh(t.Context(), stale)
	require.NoError(t, err)
	require.Same(t, fresh, again)
	require.Equal(t, fetches, p.directory.Fetches(p.peer.Name()))
}

func TestFailedRefreshKeepsTheDescriptor(t *testing.T) {
	p := startPair(t, nil)
	segment := p.opened(t)
	cached := segment.Descriptor()
	p.directory.SetFault(faultOf(metadatatest.Fetch, errBroken))
	_, err := segment.Refresh(t.Context(), cached)
	require.ErrorIs(t, err, errBroken)
	require.Same(t, cached, segment.Descriptor())
	p.directory.SetFault(nil)
	fresh, err := segment.Refresh(t.Context(), cached)
	require.NoError(t, err)
	require.NotSame(t, cached, fresh)
}

// gate is a fault that holds fetches until it is opened with their result.
type gate struct {
	begun  chan struct{}
	result chan error
}

func (p *pair) holdFetches() *gate {
	g := &gate{begun: make(chan struct{}, 64), result: make(chan error, 64)}
	p.directory.SetFault(func(op metadatatest.Operation, _ string) error {
		if op != metadatatest.Fetch {
			return nil
		}
		g.begun <- struct{}{}
		return <-g.result
	})
	return g
}

// waitingContext reports when a goroutine waits for its end.
type waitingContext struct {
	context.Context
	asked chan struct{}
}

func (c waitingContext) Done() <-chan struct{} {
	select {
	case c.asked <- struct{}{}:
	default:
	}
	return c.Context.Done()
}

func TestOneFetchServesAllWhoAskMeanwhile(t *testing.T) {
	for name, result := range map[string]error{"success": nil, "failure": errBroken} {
		t.Run(name, func(t *testing.T) {
			p := startPair(t, nil)
			segment := p.opened(t)
			stale := segment.Descriptor()
			fetches := p.directory.Fetches(p.peer.Name())
			held := p.holdFetches()
			const askers = 8
			errs := make(chan error, askers)
			ask := func(ctx context.Context) {
				_, err := segment.Refresh(ctx, stale)
				errs <- err
			}
			go ask(t.Context())
			receive(t, held.begun)
			for range askers - 1 {
				ctx := waitingContext{t.Context(), make(chan struct{}, 1)}
				go ask(ctx)
				receive(t, ctx.asked)
			}
			held.result <- result
			for range askers {
				require.ErrorIs(t, receive(t, errs), result)
			}
			require.Equal(t, fetches+1, p.directory.Fetches(p.peer.Name()))
		})
	}
}

func TestRefreshEndsWithItsOwnContextOnly(t *testing.T) {
	p := startPair(t, nil)
	segment := p.opened(t)
	stale := segment.Descriptor()
	held := p.holdFetches()
	first, endFirst := context.WithCancel(t.Context())
	errs, patient := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := segment.Refresh(first, stale)
		errs <- err
	}()
	receive(t, held.begun)

	ended, end := context.WithCancel(t.Context())
	end()
	_, err := segment.Refresh(ended, stale)
	require.ErrorIs(t, err, context.Canceled, "it does not wait for who fetches")
	require.ErrorContains(t, err, p.peer.Name())

	ctx := waitingContext{t.Context(), make(chan struct{}, 1)}
	go func() {
		_, err := segment.Refresh(ctx, stale)
		patient <- err
	}()
	receive(t, ctx.asked)
	endFirst()
	held.result <- first.Err()
	require.ErrorIs(t, receive(t, errs), context.Canceled)
	receive(t, held.begun) // the other fetches by itself
	held.result <- nil
	require.NoError(t, receive(t, patient))
	require.NotSame(t, stale, segment.Descriptor())
}

func TestSyncSegmentsFetchesEachInTheBackground(t *testing.T) {
	p := startPair(t, nil)
	segment := p.opened(t)
	for range 20 { // more than are fetched at once
		open(t, p.Engine, startPeer(t, p.directory).Name())
	}
	cached := segment.Descriptor()
	held := p.holdFetches()
	require.NoError(t, p.SyncSegments())
	receive(t, held.begun)
	for range 10 {
		require.NoError(t, p.SyncSegments(), "it does not wait")
	}
	for range 64 {
		held.result <- nil
	}
	eventually(t, func() bool { return segment.Descriptor() != cached })
}

func TestDescriptorsAreFetchedAgainNowAndThen(t *testing.T) {
	p := startPair(t, func(o *core.Options) { o.Config.MetaRefreshInterval = 1e6 })
	segment := p.opened(t)
	cached := segment.Descriptor()
	eventually(t, func() bool { return segment.Descriptor() != cached })
}

func TestFirstBufferIsTheOneRegisteredFirst(t *testing.T) {
	p := startPair(t, nil)
	addr, err := p.FirstBuffer(p.peer.Name())
	require.NoError(t, err)
	require.Zero(t, addr)

	for _, e := range []*core.Engine{p.Engine, p.peer} {
		memory := pages(t, 3*4096)
		require.NoError(t, e.Register(at(memory), 4096, "cpu:0", false)) // not open to peers
		require.NoError(t, e.Register(at(memory)+2*4096, 4096, "cpu:0", true))
		require.NoError(t, e.Register(at(memory)+4096, 4096, "cpu:0", true))
		addr, err := p.FirstBuffer(e.Name())
		require.NoError(t, err)
		require.EqualValues(t, at(memory)+2*4096, addr)
	}
	fetches := p.directory.Fetches(p.peer.Name())
	_, err = p.FirstBuffer(p.peer.Name())
	require.NoError(t, err)
	require.Equal(t, fetches, p.directory.Fetches(p.peer.Name()), "a descriptor with buffers is not fetched again")
	_, err = p.FirstBuffer("nobody:1")
	require.Error(t, err)
}

func TestWhereADataPortMayBe(t *testing.T) {
	for _, c := range []struct {
		metadata, named, identity string
		want                      []string
	}{
		{metadata.P2P, "", "", []string{"127.0.0.1"}},
		{metadata.P2P, "127.0.0.1", "", []string{"127.0.0.1"}},
		{metadata.P2P, "10.0.0.7", "", []string{"10.0.0.7", "127.0.0.1"}},
		{metadata.P2P, "0.0.0.0", "", []string{"127.0.0.1", "0.0.0.0"}},
		{"http://store/metadata", "10.0.0.7", "an identity", []string{"10.0.0.7", "127.0.0.1"}},
		{"http://store/metadata", "10.0.0.7", "", []string{"10.0.0.7"}}, // nothing would tell whose data port the other is
		{"http://store/metadata", "", "", []string{"127.0.0.1"}},
	} {
		directory := metadatatest.NewDirectory()
		peer := startPeer(t, directory)
		directory.SetAddress(peer.Name(), "127.0.0.1:9")
		e := startEngine(t, directory, func(o *core.Options) { o.Metadata = c.metadata })
		install(t, e, &transporttest.Transport{})
		s, err := e.SegmentNamed(peer.Name())
		require.NoError(t, err)
		hosts, err := s.DataHosts(t.Context(), &metadata.Descriptor{DataHost: c.named, Identity: c.identity})
		require.NoError(t, err)
		require.Equal(t, c.want, hosts, "%+v", c)
	}
}
