package core_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// impatient has an engine take what does not end at once for stuck.
func impatient(e *core.Engine) {
	e.SetGrace(50 * time.Millisecond)
	e.SetEnding(50 * time.Millisecond)
}

// requireInUse checks the error of a call that could not wait any longer.
func requireInUse(t *testing.T, err error, parts ...string) {
	t.Helper()
	require.ErrorIs(t, err, core.ErrInUse)
	requireCode(t, status.BatchBusy, err)
	for _, part := range parts {
		require.ErrorContains(t, err, part)
	}
}

// pin is a use of memory that ends when the test says so.
func pin(t *testing.T, e *core.Engine, addr uintptr, length uint64) *core.Region {
	t.Helper()
	region, err := e.Memory().PinRemote(uint64(addr), length, core.Read)
	require.NoError(t, err)
	return region
}

func TestUnregisterOfMemoryThatStaysInUseFailsAndSaysByWhom(t *testing.T) {
	p := startPairWith(t, &transporttest.Transport{
		OnHolders: func(r *core.Region) []string { return []string{"process 4711 with " + r.String()} },
	}, nil)
	impatient(p.Engine)
	base := at(pages(t, 4*4096))
	require.NoError(t, p.Register(base+4096, 2*4096, "cpu:0", true))
	region := pin(t, p.Engine, base+4096, 1)
	held := fmt.Sprintf("%#x+%d", base+4096, 2*4096)

	requireInUse(t, p.Unregister(base+4096), held, "process 4711 with "+held)
	require.Equal(t, 1, p.transport.Calls().Evict)
	require.Empty(t, p.Descriptor().Buffers, "peers do not see it any more")
	for _, r := range []core.Range{{Addr: base, Length: 4097}, {Addr: base + 4096, Length: 2 * 4096}, {Addr: base + 3*4096 - 1, Length: 1}} {
		err := p.Register(r.Addr, r.Length, "cpu:0", true)
		requireCode(t, status.AddressOverlapped, err)
		require.ErrorContains(t, err, "overlaps "+held+", which was unregistered and is still in use: process 4711")
	}
	require.NoError(t, p.Register(base, 4096, "cpu:0", true), "what is beside it can be registered")
	require.NoError(t, p.Register(base+3*4096, 4096, "cpu:0", true))
	requireInUse(t, p.Unregister(base+4096), "process 4711")

	region.Unpin()
	require.NoError(t, p.Register(base+2*4096, 4096, "cpu:0", true), "its last use has ended")
}

func TestUnregisteringAgainSucceedsWhenTheLastUseHasEnded(t *testing.T) {
	p := startPair(t, nil)
	memory := at(pages(t, 4096))
	for name, end := range map[string]func(region *core.Region, again chan error){
		"before": func(region *core.Region, again chan error) {
			region.Unpin()
			again <- p.Unregister(memory)
		},
		"meanwhile": func(region *core.Region, again chan error) {
			p.SetEnding(time.Hour)
			evicted := p.transport.Calls().Evict
			go func() { again <- p.Unregister(memory) }()
			eventually(t, func() bool { return p.transport.Calls().Evict > evicted })
			region.Unpin()
		},
	} {
		impatient(p.Engine)
		require.NoError(t, p.Register(memory, 4096, "cpu:0", true))
		region := pin(t, p.Engine, memory, 4096)
		requireInUse(t, p.Unregister(memory))
		again := make(chan error, 1)
		end(region, again)
		require.NoError(t, receive(t, again), name)
		requireCode(t, status.AddressNotRegistered, p.Unregister(memory))
	}
}

func TestRegionsThatAreNotInUseAreGivenBackBesideOneThatIs(t *testing.T) {
	p := startPair(t, nil)
	impatient(p.Engine)
	base := at(pages(t, 3*4096))
	addrs := []uintptr{base, base + 4096, base + 2*4096}
	for _, addr := range addrs {
		require.NoError(t, p.Register(addr, 4096, "cpu:0", true))
	}
	region := pin(t, p.Engine, base+4096, 1)
	defer region.Unpin()
	requireInUse(t, p.UnregisterBatch(append([]uintptr{base + 1}, addrs...)), region.String(), "no memory is registered at")
	require.NoError(t, p.Register(addrs[0], 4096, "cpu:0", true))
	require.NoError(t, p.Register(addrs[2], 4096, "cpu:0", true))
}

func TestUnregisterNamesTheTransfersOfThisEngineThatAreStuck(t *testing.T) {
	p := startPairWith(t, &transporttest.Transport{KeepAborted: true}, nil)
	impatient(p.Engine)
	memory := at(pages(t, 2*4096))
	require.NoError(t, p.Register(memory, 4096, "cpu:0", false))
	b := p.batch(t, 2)
	stuck := p.submit(t, b,
		core.Request{Opcode: core.Read, Local: memory + 4096, Target: p.segment, Remote: 1, Length: 9},
		core.Request{Opcode: core.Write, Local: memory, Target: p.segment, Remote: 1, Length: 77})
	requireInUse(t, p.Unregister(memory), fmt.Sprintf("a WRITE of 77 bytes, segment %q, batch %d", p.peer.Name(), b.ID()))
	stuck.Settle(9, 77, stuck.Aborted())
	requireInUse(t, p.Unregister(memory), "a READ of 9 bytes") // the batch keeps all its memory
	stuck.SettleRest(stuck.Aborted())
	require.NoError(t, p.Unregister(memory))
}

func TestHeldMemoryIsNotGivenBackUntilItIsReleased(t *testing.T) {
	p := startPair(t, nil)
	impatient(p.Engine)
	base := at(pages(t, 3*4096))
	addrs := []uintptr{base, base + 4096, base + 2*4096}
	for _, addr := range addrs {
		require.NoError(t, p.Register(addr, 4096, "cpu:0", false))
	}
	release := p.Memory().Hold(core.Range{Addr: base + 4096 - 1, Length: 4097}, "process 4711 may read it still")
	err := p.UnregisterBatch(addrs)
	requireInUse(t, err, fmt.Sprintf("%#x+4096 by process 4711 may read it still", base), fmt.Sprintf("%#x+4096 by process 4711", base+4096))
	require.NotContains(t, err.Error(), fmt.Sprintf("%#x+", base+2*4096))
	release()
	release()
	require.NoError(t, p.UnregisterBatch(addrs[:2]))
	require.NoError(t, p.RegisterBatch([]core.Range{{Addr: base, Length: 3 * 4096}}, "cpu:0"))

	p.Memory().Hold(core.Range{Addr: base + 3*4096, Length: 4096}, "not registered")()
	p.Memory().Hold(core.Range{Addr: base, Length: 0}, "empty")
	p.Memory().Hold(core.Range{Addr: base, Length: ^uint64(0)}, "wraps")
	require.NoError(t, p.Unregister(base))
}

// A transfer that is given up while its memory is being unregistered holds it before it lets go.
func TestHoldReachesMemoryThatIsBeingUnregistered(t *testing.T) {
	p := startPair(t, nil)
	p.SetGrace(time.Hour)
	memory := at(pages(t, 4096))
	require.NoError(t, p.Register(memory, 4096, "cpu:0", true))
	region := pin(t, p.Engine, memory, 4096)
	var released atomic.Bool
	returned := make(chan error, 1)
	go func() {
		err := p.Unregister(memory)
		if !released.Load() {
			err = errors.New("returned while the memory was held")
		}
		returned <- err
	}()
	eventually(t, func() bool { return len(p.Descriptor().Buffers) == 0 })
	release := p.Memory().Hold(core.Range{Addr: memory, Length: 1}, "somebody")
	region.Unpin()
	requireCode(t, status.AddressOverlapped, p.Register(memory, 4096, "cpu:0", true))
	released.Store(true)
	release()
	require.NoError(t, receive(t, returned))
}

func TestDiscardOfABatchThatIsStuckFailsAndTheBatchIsFreedWhenItEnds(t *testing.T) {
	p := startPairWith(t, &transporttest.Transport{KeepAborted: true}, nil)
	impatient(p.Engine)
	b := p.batch(t, 1)
	stuck := p.submit(t, b, p.writes(10)...)
	requireInUse(t, p.DiscardBatch(b), "a WRITE of 10 bytes", "local memory 0x10000+10")
	require.Equal(t, []core.State{waiting}, states(t, b))
	_, err := p.Batch(b.ID())
	require.NoError(t, err)
	stuck.SettleRest(stuck.Aborted())
	eventually(t, func() bool { _, err := p.Batch(b.ID()); return err != nil })
}

func TestCloseOfAnEngineThatIsStuckNamesWhatIsHeldAndReleasesTheRest(t *testing.T) {
	transport := &transporttest.Transport{KeepAborted: true, Stuck: make(chan struct{})}
	p := startStaged(t, transport, nil)
	impatient(p.Engine)
	idle, used := p.memory(1, 4096), p.memory(0, 4096)
	b := p.batch(t, 2)
	require.NoError(t, p.Submit(b, []core.Request{
		{Opcode: core.Write, Local: at(idle), Target: core.LocalSegment, Remote: uint64(at(idle)), Length: 64}}, nil))
	wait(t, b)
	require.NoError(t, p.Submit(b, []core.Request{
		{Opcode: core.Write, Local: at(used), Target: p.segment, Remote: 1, Length: 4096}}, nil))
	p.arrival()

	requireInUse(t, p.Close(), "the fake transport", "a WRITE of 4096 bytes", "bytes of npu:0's staging blocks")
	require.NoError(t, p.Close(), "a second time")
	_, err := p.peer.OpenSegment(p.Name())
	require.Error(t, err, "its metadata is withdrawn")
	eventually(t, func() bool { return !p.isStaged("npu:1") })
	require.True(t, p.isStaged("npu:0"), "blocks that may be in use were freed")

	close(transport.Stuck)
	eventually(t, func() bool { return !p.isStaged("npu:0") })
	require.Equal(t, []core.State{completed, failed}, states(t, b))
}

// isStaged reports whether there are staging blocks for a device.
func (p *stagedPair) isStaged(name string) bool {
	return slices.ContainsFunc(p.host.Leaks(), func(leak string) bool {
		return strings.HasPrefix(leak, name) && !strings.Contains(leak, "page-locked: false")
	})
}

func TestCloseEndsCallsThatWaitForWhatIsStuck(t *testing.T) {
	transport := &transporttest.Transport{KeepAborted: true, Stuck: make(chan struct{})}
	p := startPairWith(t, transport, nil)
	p.SetGrace(time.Hour)
	p.SetEnding(10 * time.Millisecond)
	memory := at(pages(t, 4096))
	require.NoError(t, p.Register(memory, 4096, "cpu:0", true))
	b := p.batch(t, 1)
	p.submit(t, b, core.Request{Opcode: core.Write, Local: memory, Target: p.segment, Remote: 1, Length: 8})
	unregistered, discarded := make(chan error, 1), make(chan error, 1)
	go func() { unregistered <- p.Unregister(memory) }()
	eventually(t, func() bool { return len(p.Descriptor().Buffers) == 0 })
	go func() { discarded <- p.DiscardBatch(b) }()
	requireInUse(t, p.Close(), "a WRITE of 8 bytes", fmt.Sprintf("local memory %#x+8", memory))
	requireInUse(t, receive(t, unregistered), "a WRITE of 8 bytes")
	requireInUse(t, receive(t, discarded))
	close(transport.Stuck)
	wait(t, b)
}
