package core_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestPeersFindEachOtherByNameAlone(t *testing.T) {
	start := func() *core.Engine {
		e, err := core.New(core.Options{
			Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: core.DefaultConfig(), Log: zap.NewNop(),
		})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, e.Close()) })
		install(t, e, &transporttest.Transport{Address: core.Endpoint{Port: 9, ProtoVersion: 2}})
		return e
	}
	here, there := start(), start()
	require.Equal(t, fmt.Sprint("127.0.0.1:", here.HandshakePort()), here.Name())
	require.Equal(t, "127.0.0.1", here.ListenHost())
	memory := pages(t, 4096)
	require.NoError(t, there.Register(at(memory), 4096, "cpu:0", true))

	id := open(t, here, there.Name())
	addr, err := here.FirstBuffer(there.Name())
	require.NoError(t, err)
	require.EqualValues(t, at(memory), addr)
	require.NoError(t, here.Probe(there.Name()))
	require.NoError(t, here.Notify(id, hello))
	require.Equal(t, []metadata.Notification{hello}, there.Notifications())
}

func TestAnEngineThatPeersCanFindSaysSoOnce(t *testing.T) {
	observed, lines := observer.New(zap.InfoLevel)
	e, err := core.New(core.Options{
		Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: core.DefaultConfig(), Log: zap.New(observed),
		Version: "1.2.3", Changed: []string{"MC_RETRY_CNT=3"},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	require.Empty(t, lines.All(), "before there is a data port")

	for range 2 {
		install(t, e, &transporttest.Transport{Address: core.Endpoint{Port: 9, ProtoVersion: 2}})
	}
	require.Len(t, lines.All(), 1)
	require.Equal(t, map[string]any{
		"version": "1.2.3", "name": e.Name(), "handshake": e.Address(), "data": "127.0.0.1:9", "listening": "127.0.0.1", "security": "off",
		"metadata": "P2PHANDSHAKE", "settings": []any{"MC_RETRY_CNT=3"},
	}, lines.All()[0].ContextMap())
}

func TestEngineThatCannotBeMade(t *testing.T) {
	for name, o := range map[string]core.Options{
		"no name":           {Name: "", Metadata: "P2PHANDSHAKE"},
		"port out of range": {Name: "127.0.0.1:99999", Metadata: "P2PHANDSHAKE"},
		"unknown store":     {Name: "127.0.0.1", Metadata: "carrier-pigeon://loft"},
	} {
		o.Config, o.Log = core.DefaultConfig(), zap.NewNop()
		_, err := core.New(o)
		require.Error(t, err, name)
	}
	d := metadatatest.NewDirectory()
	d.SetFault(faultOf(metadatatest.Publish, errBroken))
	_, err := core.Start(core.Options{Name: "127.0.0.1", Config: core.DefaultConfig(), Log: zap.NewNop()}, d.Store())
	require.ErrorIs(t, err, errBroken)
	requireCode(t, status.Metadata, err)
}

func TestDescriptorShowsWhatPeersMayUse(t *testing.T) {
	d := metadatatest.NewDirectory()
	e := startEngine(t, d, nil)
	install(t, e, &transporttest.Transport{Address: core.Endpoint{Port: 15999, ProtoVersion: 2}})
	memory := pages(t, 3*4096)
	require.NoError(t, e.Register(at(memory)+4096, 4096, "", true))
	require.NoError(t, e.Register(at(memory), 4096, "cpu:1", true))
	require.NoError(t, e.Register(at(memory)+2*4096, 4096, "cpu:1", false))

	shown := e.Descriptor()
	require.Equal(t, e.Name(), shown.Name)
	require.Equal(t, "127.0.0.1", shown.DataHost)
	require.Equal(t, 15999, shown.DataPort)
	require.Equal(t, 2, shown.ProtoVersion)
	require.Equal(t, []metadata.Buffer{
		{Name: "*", Addr: uint64(at(memory)) + 4096, Length: 4096},
		{Name: "cpu:1", Addr: uint64(at(memory)), Length: 4096},
	}, shown.Buffers)
}

func TestInstallingATransportTwiceGivesTheSame(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	first, second := &transporttest.Transport{}, &transporttest.Transport{}
	for range 2 {
		got, err := e.Install("tcp", first.Open)
		require.NoError(t, err)
		require.Same(t, first, got)
	}
	got, err := e.Install("ascend", second.Open)
	require.NoError(t, err)
	require.Same(t, second, got)
	require.Equal(t, 1, first.Calls().Open)
	require.NoError(t, e.Close())
	require.Equal(t, 1, first.Calls().Close)
	require.Equal(t, 1, second.Calls().Close)
}

func TestTransportThatCannotBeInstalledLeavesNothing(t *testing.T) {
	p := startPair(t, nil)
	_, err := p.Install("broken", func(*core.Engine) (core.Transport, error) { return nil, errBroken })
	require.ErrorIs(t, err, errBroken)

	unseen := &transporttest.Transport{Address: core.Endpoint{Port: 9, ProtoVersion: 2}}
	p.directory.SetFault(faultOf(metadatatest.Publish, errBroken))
	_, err = p.Install("unseen", unseen.Open)
	require.ErrorIs(t, err, errBroken)
	requireCode(t, status.Metadata, err)
	require.Equal(t, 1, unseen.Calls().Close)
	require.Zero(t, p.Descriptor().DataPort)
	p.directory.SetFault(nil)
	p.submit(t, p.batch(t, 1), p.writes(1)...)
	require.Equal(t, 1, p.transport.Calls().Submit, "the one before is used still")
	_, err = p.Install("unseen", unseen.Open)
	require.NoError(t, err, "it can be tried again")
}

func TestRegisteredMemoryMustNotOverlap(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	base := at(pages(t, 4*4096))
	require.NoError(t, e.Register(base+4096, 4096, "cpu:0", true))
	for _, r := range []core.Range{
		{Addr: base + 4096, Length: 4096}, {Addr: base, Length: 4097}, {Addr: base + 2*4096 - 1, Length: 1},
		{Addr: base, Length: 4 * 4096}, {Addr: base + 4097, Length: 1},
	} {
		requireCode(t, status.AddressOverlapped, e.Register(r.Addr, r.Length, "cpu:0", true))
	}
	require.NoError(t, e.Register(base, 4096, "cpu:0", true))
	require.NoError(t, e.Register(base+2*4096, 4096, "cpu:0", true))
	requireCode(t, status.InvalidArgument, e.Register(0, 1, "", true))
	requireCode(t, status.InvalidArgument, e.Register(base+3*4096, 0, "", true))
	requireCode(t, status.AddressNotRegistered, e.Unregister(base+1))
	requireCode(t, status.AddressNotRegistered, e.Unregister(0))
}

func TestBatchOfMemoryIsRegisteredWholeOrNotAtAll(t *testing.T) {
	d := metadatatest.NewDirectory()
	e := startEngine(t, d, nil)
	base := at(pages(t, 4*4096))
	page := func(i uintptr) core.Range { return core.Range{Addr: base + i*4096, Length: 4096} }

	require.NoError(t, e.RegisterBatch(nil, "cpu:0"))
	requireCode(t, status.AddressOverlapped, e.RegisterBatch([]core.Range{page(0), page(1), page(0)}, "cpu:0"))
	requireCode(t, status.InvalidArgument, e.RegisterBatch([]core.Range{page(0), {Addr: base + 4096}}, "cpu:0"))
	require.Empty(t, e.Descriptor().Buffers)

	d.SetFault(faultOf(metadatatest.Publish, errBroken))
	err := e.RegisterBatch([]core.Range{page(0), page(1)}, "cpu:0")
	requireCode(t, status.Metadata, err)
	require.ErrorIs(t, err, errBroken)
	d.SetFault(nil)
	require.Empty(t, e.Descriptor().Buffers)

	require.NoError(t, e.RegisterBatch([]core.Range{page(0), page(1)}, "cpu:0"))
	requireCode(t, status.AddressNotRegistered, e.UnregisterBatch([]uintptr{base, base + 2*4096, base + 4096}))
	require.Empty(t, e.Descriptor().Buffers, "the others are unregistered")
	require.NoError(t, e.RegisterBatch([]core.Range{page(0), page(1)}, "cpu:0"), "and can be registered again at once")
	require.NoError(t, e.UnregisterBatch(nil))
}

func TestUnregisterWaitsForAPinAndTakesNoNewOnes(t *testing.T) {
	p := startPair(t, nil)
	p.SetGrace(time.Hour)
	memory := pages(t, 4096)
	require.NoError(t, p.Register(at(memory), 4096, "cpu:0", true))
	region, err := p.Memory().PinRemote(uint64(at(memory)), 4096, core.Read)
	require.NoError(t, err)

	var unpinned atomic.Bool
	returned := make(chan error, 1)
	go func() {
		err := p.Unregister(at(memory))
		if !unpinned.Load() {
			err = errors.New("returned while the memory was in use")
		}
		returned <- err
	}()
	eventually(t, func() bool {
		again, err := p.Memory().PinRemote(uint64(at(memory)), 1, core.Read)
		if err == nil {
			again.Unpin()
		}
		return err != nil
	})
	unpinned.Store(true)
	region.Unpin()
	require.NoError(t, receive(t, returned))
	require.Zero(t, p.transport.Calls().Evict)
	require.NoError(t, p.Register(at(memory), 4096, "cpu:0", true), "it can be registered again at once")
}

func TestUnregisterEvictsPeersAfterTheGracePeriod(t *testing.T) {
	var pinned *core.Region
	p := startPairWith(t, &transporttest.Transport{OnEvict: func(r *core.Region) {
		if r == pinned {
			r.Unpin()
		}
	}}, nil)
	p.SetGrace(time.Millisecond)
	memory := pages(t, 4096)
	require.NoError(t, p.Register(at(memory), 4096, "cpu:0", true))
	pinned, _ = p.Memory().PinRemote(uint64(at(memory)), 4096, core.Read)
	require.NoError(t, p.Unregister(at(memory)))
	require.Equal(t, 1, p.transport.Calls().Evict)
}

func TestUnregisterAbortsTheBatchesThatUseTheMemory(t *testing.T) {
	p := startPair(t, nil)
	p.SetGrace(time.Millisecond)
	memory := pages(t, 2*4096)
	require.NoError(t, p.Register(at(memory), 4096, "cpu:0", false))
	users := []*core.Batch{p.batch(t, 1), p.batch(t, 2)}
	bystander := p.batch(t, 1)
	within := core.Request{Opcode: core.Write, Local: at(memory) + 8, Target: p.segment, Remote: 1, Length: 8}
	beyond := within
	beyond.Local = at(memory) + 4096 - 4
	after := within
	after.Local = at(memory) + 4096
	p.submit(t, users[0], within)
	p.submit(t, users[1], after, beyond)
	p.submit(t, bystander, after)

	require.NoError(t, p.Unregister(at(memory)))
	require.Equal(t, []core.State{failed}, states(t, users[0]))
	require.Equal(t, []core.State{failed, failed}, states(t, users[1]))
	require.Equal(t, []core.State{waiting}, states(t, bystander))
	requireCode(t, status.AddressNotRegistered, users[0].Err())
	require.ErrorContains(t, users[0].Err(), fmt.Sprintf("%#x", at(memory)))
}

func TestUnregisterWaitsUntilAbortedBytesAreSettled(t *testing.T) {
	aborted := make(chan struct{}, 1)
	p := startPairWith(t, &transporttest.Transport{KeepAborted: true, OnAbort: func() { aborted <- struct{}{} }}, nil)
	p.SetGrace(time.Millisecond)
	memory := pages(t, 4096)
	require.NoError(t, p.Register(at(memory), 4096, "cpu:0", false))
	held := p.submit(t, p.batch(t, 1),
		core.Request{Opcode: core.Read, Local: at(memory), Target: p.segment, Remote: 1, Length: 8})
	var settled atomic.Bool
	returned := make(chan error, 1)
	go func() {
		err := p.Unregister(at(memory))
		if !settled.Load() {
			err = errors.New("returned while the memory was in use")
		}
		returned <- err
	}()
	receive(t, aborted)
	settled.Store(true)
	held.SettleRest(held.Aborted())
	require.NoError(t, receive(t, returned))
}

// A grace period for each would be an hour.
func TestRegionsUnregisteredTogetherShareTheGracePeriod(t *testing.T) {
	const regions = 12_000
	p := startPairWith(t, &transporttest.Transport{OnEvict: func(r *core.Region) { r.Unpin() }}, nil)
	p.SetGrace(300 * time.Millisecond)
	addrs := make([]uintptr, regions)
	ranges := make([]core.Range, regions)
	for i := range addrs {
		addrs[i] = 0x10_0000_0000 + uintptr(i)*4096 // never touched
		ranges[i] = core.Range{Addr: addrs[i], Length: 4096}
	}
	require.NoError(t, p.RegisterBatch(ranges, "cpu:0"))
	for _, addr := range addrs {
		_, err := p.Memory().PinRemote(uint64(addr), 1, core.Read)
		require.NoError(t, err)
	}
	returned := make(chan error, 1)
	go func() { returned <- p.UnregisterBatch(addrs) }()
	require.NoError(t, receive(t, returned))
	require.Equal(t, regions, p.transport.Calls().Evict)
}

func TestManyRegionsCanBeRegistered(t *testing.T) {
	const regions = 100_000
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	ranges := make([]core.Range, regions)
	addrs := make([]uintptr, regions)
	for i := range ranges {
		addrs[i] = 0x10_0000_0000 + uintptr(i*7919%regions)*4096 // in no order, never touched
		ranges[i] = core.Range{Addr: addrs[i], Length: 4096}
	}
	require.NoError(t, e.RegisterBatch(ranges, "cpu:0"))
	require.Len(t, e.Descriptor().Buffers, regions)
	require.NoError(t, e.UnregisterBatch(addrs))
	require.Empty(t, e.Descriptor().Buffers)
}

func TestCloseEndsWhatIsInFlight(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 2)
	held := p.submit(t, b, p.writes(10, 10)...)
	held.Settle(0, 10, nil)
	done := make(chan struct{})
	b.OnDone(func() { close(done) })
	require.NoError(t, p.Close())
	receive(t, done)
	require.Equal(t, []core.State{completed, failed}, states(t, b))
	require.ErrorIs(t, b.Err(), core.ErrClosed)
	require.NoError(t, p.FreeBatch(b), "batches can be freed still")
	_, err := p.peer.OpenSegment(p.Name())
	require.Error(t, err, "its metadata is withdrawn")
}

// The engine is closed while a Submit fetches a descriptor: what that submits must not be begun any more.
func TestSubmitThatOutlivesTheEngineMovesNothing(t *testing.T) {
	p := startPair(t, func(o *core.Options) { o.Config.DisableMetaCache = true })
	memory := pages(t, 2*4096)
	fill(memory[:4096], 1)
	require.NoError(t, p.Register(at(memory), 2*4096, "cpu:0", true))
	b := p.batch(t, 2)
	reqs := append(p.writes(10),
		core.Request{Opcode: core.Write, Local: at(memory), Remote: uint64(at(memory)) + 4096, Length: 4096})
	held := p.holdFetches()
	submitted := make(chan error, 1)
	go func() { submitted <- p.Submit(b, reqs, nil) }()
	receive(t, held.begun)
	require.NoError(t, p.Close())
	held.result <- nil
	require.NoError(t, receive(t, submitted))
	require.Equal(t, []core.State{failed, failed}, states(t, b))
	require.ErrorIs(t, b.Err(), core.ErrClosed)
	require.Equal(t, make([]byte, 4096), memory[4096:])
}

func TestCloseEndsAnUnregisterThatWaits(t *testing.T) {
	p := startPairWith(t, &transporttest.Transport{}, nil)
	p.SetGrace(time.Hour)
	memory := pages(t, 4096)
	require.NoError(t, p.Register(at(memory), 4096, "cpu:0", true))
	p.submit(t, p.batch(t, 1),
		core.Request{Opcode: core.Write, Local: at(memory), Target: p.segment, Remote: 1, Length: 8})
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		_ = p.Unregister(at(memory)) // whether it could publish depends on who was first
	}()
	eventually(t, func() bool { return len(p.Descriptor().Buffers) == 0 })
	require.NoError(t, p.Close())
	receive(t, returned)
}

func TestClosedEngineTakesNoCalls(t *testing.T) {
	p := startPair(t, nil)
	memory := pages(t, 4096)
	b := p.batch(t, 3)
	require.NoError(t, p.Close())
	for name, call := range map[string]func() error{
		"Install":            func() error { _, err := p.Install("other", p.transport.Open); return err },
		"Register":           func() error { return p.Register(at(memory), 4096, "cpu:0", true) },
		"RegisterBatch":      func() error { return p.RegisterBatch(nil, "cpu:0") },
		"Unregister":         func() error { return p.Unregister(at(memory)) },
		"UnregisterBatch":    func() error { return p.UnregisterBatch(nil) },
		"OpenSegment":        func() error { _, err := p.OpenSegment(p.peer.Name()); return err },
		"OpenSegmentNoCache": func() error { _, err := p.OpenSegmentNoCache(p.Name()); return err },
		"FirstBuffer":        func() error { _, err := p.FirstBuffer(p.Name()); return err },
		"SyncSegments":       func() error { return p.SyncSegments() },
		"AllocateBatch":      func() error { _, err := p.AllocateBatch(1); return err },
		"Submit":             func() error { return p.Submit(b, p.writes(1), nil) },
		"Submit of nothing":  func() error { return p.Submit(b, nil, nil) },
		"Notify":             func() error { return p.Notify(p.segment, hello) },
		"Probe":              func() error { return p.Probe(p.Name()) },
	} {
		err := call()
		require.ErrorIs(t, err, core.ErrClosed, name)
		requireCode(t, status.Context, err)
	}
	require.NoError(t, p.DiscardBatch(b))
	require.NoError(t, p.RemoveLocalSegment(p.peer.Name()))
	require.Empty(t, p.Notifications())
	require.Empty(t, p.Links())
}

func TestEveryCloseReturnsWhenTheEngineIsClosed(t *testing.T) {
	p := startPair(t, nil)
	p.submit(t, p.batch(t, 1), p.writes(10)...)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			if p.transport.Calls().Close != 1 || len(p.transport.Held()) != 0 {
				t.Error("Close returned before the transport was closed")
			}
		})
	}
	all.Wait()
	require.NoError(t, p.Close())
	require.Equal(t, 1, p.transport.Calls().Close)
}

func TestCallsRaceWithClose(t *testing.T) {
	for round := range 20 {
		p := startPair(t, nil)
		base := at(pages(t, 64*4096))
		var batches sync.Map
		var all sync.WaitGroup
		until := func(call func(i uintptr) error) {
			all.Go(func() {
				for i := uintptr(0); ; i++ {
					err := call(i)
					if errors.Is(err, core.ErrClosed) {
						return
					}
					if err != nil && !strings.Contains(err.Error(), "context canceled") {
						t.Error(err)
						return
					}
				}
			})
		}
		for range 2 {
			until(func(uintptr) error {
				b, err := p.AllocateBatch(2)
				if err != nil {
					return err
				}
				batches.Store(b, nil)
				return p.Submit(b, append(p.writes(1), core.Request{Local: base, Remote: 1, Length: 1}), &hello)
			})
		}
		until(func(uintptr) error { _, err := p.OpenSegment(p.peer.Name()); return err })
		until(func(i uintptr) error {
			addr := base + i%64*4096
			if err := p.Register(addr, 4096, "cpu:0", true); err != nil {
				return err
			}
			return p.Unregister(addr)
		})
		until(func(i uintptr) error {
			_, err := p.Install(fmt.Sprint("another ", i), func(*core.Engine) (core.Transport, error) {
				return p.transport, nil
			})
			return err
		})
		until(func(uintptr) error { return p.SyncSegments() })
		if round%2 == 0 {
			eventually(t, func() bool { return p.transport.Calls().Submit > 0 })
		}
		require.NoError(t, p.Close())
		all.Wait()
		batches.Range(func(b, _ any) bool {
			require.True(t, b.(*core.Batch).Done())
			require.NoError(t, p.FreeBatch(b.(*core.Batch)))
			return true
		})
	}
}
