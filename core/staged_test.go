package core_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/metrics"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// stagedPair is an engine with two devices of host memory, and a peer. What reaches the transport must be in host memory
// that is no device's, and what a WRITE sends from there is what was on the device.
type stagedPair struct {
	*pair
	host *device.Host
	t    *testing.T
}

func startStaged(t *testing.T, transport *transporttest.Transport, configure func(*core.Config)) *stagedPair {
	t.Helper()
	host := device.NewHost("npu", 2)
	p := &stagedPair{host: host, t: t}
	t.Cleanup(func() { require.Empty(t, host.Leaks()) })
	p.pair = startPairWith(t, transport, func(o *core.Options) {
		o.Runtimes = []device.Runtime{host}
		if configure != nil {
			configure(&o.Config)
		}
	})
	return p
}

// memory is registered memory of a device.
func (p *stagedPair) memory(index, length int) []byte {
	p.t.Helper()
	b, err := p.host.Allocate(index, uint64(length))
	require.NoError(p.t, err)
	p.t.Cleanup(func() { require.NoError(p.t, p.host.Free(b)) })
	require.NoError(p.t, p.Register(at(b), uint64(length), "*", true))
	p.t.Cleanup(func() { _ = p.Unregister(at(b)) }) // fails on a closed engine
	return b
}

// wire stands for the peer's memory: a WRITE ends there, a READ begins there.
type wire struct {
	mu     sync.Mutex
	memory []byte // at address 0 of the peer
}

// carry moves what a work is about, and settles it.
func (w *wire) carry(h *transporttest.Held) {
	w.mu.Lock()
	if h.Transfer != nil {
		w.carryTransfer(h)
	} else {
		for i := h.Head; i >= 0; i = h.Tasks[i].Next {
			w.move(&h.Tasks[i].Request)
		}
	}
	w.mu.Unlock()
	h.SettleRest(nil)
}

func (w *wire) move(r *core.Request) {
	local, remote := hostmem.At(r.Local, r.Length), w.memory[r.Remote:][:r.Length]
	if r.Opcode == core.Write {
		copy(remote, local)
	} else {
		copy(local, remote)
	}
}

func TestStagedTransfersOfAllSizesMoveEveryByteAndNoOther(t *testing.T) {
	w := &wire{memory: make([]byte, 8<<20)}
	p := startStaged(t, &transporttest.Transport{OnSubmit: w.carry}, nil)
	memory := p.memory(1, 8<<20)
	for _, opcode := range []core.Opcode{core.Write, core.Read} {
		for _, length := range []int{1, 63, 64, 65, 4096, 64 << 10, 256<<10 + 1, 2 << 20, 5<<20 + 7} {
			fill(memory, 1)
			fill(w.memory, 2)
			wantMemory, wantWire := slices.Clone(memory), slices.Clone(w.memory)
			if opcode == core.Write {
				copy(wantWire[5:], memory[3:3+length])
			} else {
				copy(wantMemory[3:], w.memory[5:5+length])
			}
			b := p.batch(t, 1)
			require.NoError(t, p.Submit(b, []core.Request{
				{Opcode: opcode, Local: at(memory) + 3, Target: p.segment, Remote: 5, Length: uint64(length)}}, nil))
			wait(t, b)
			require.Equal(t, []core.State{core.Completed}, states(t, b), "%v", b.Err())
			require.True(t, bytes.Equal(wantMemory, memory), "%v of %d bytes: local memory", opcode, length)
			require.True(t, bytes.Equal(wantWire, w.memory), "%v of %d bytes: remote memory", opcode, length)
		}
	}
}

func TestBatchOfHostMemoryAndTwoDevicesInBothDirections(t *testing.T) {
	const blocks, size = 200, 3000
	w := &wire{memory: make([]byte, 6*blocks*size)}
	p := startStaged(t, &transporttest.Transport{OnSubmit: w.carry}, nil)
	local := [][]byte{pages(t, 2*blocks*size), p.memory(0, 2*blocks*size), p.memory(1, 2*blocks*size)}
	fill(w.memory, 7)
	wantWire := slices.Clone(w.memory)
	var reqs []core.Request
	for kind, memory := range local {
		fill(memory, byte(kind))
		for i := range blocks {
			write, read := 2*i*size, (2*i+1)*size
			base := uint64(kind * 2 * blocks * size)
			reqs = append(reqs,
				core.Request{Opcode: core.Write, Local: at(memory[write:]), Target: p.segment, Remote: base + uint64(write), Length: size},
				core.Request{Opcode: core.Read, Local: at(memory[read:]), Target: p.segment, Remote: base + uint64(read), Length: size})
		}
	}
	rand.Shuffle(len(reqs), func(i, j int) { reqs[i], reqs[j] = reqs[j], reqs[i] })
	before := slices.Clone(reqs)
	b := p.batch(t, len(reqs))
	for kind, memory := range local {
		for i := range blocks {
			copy(wantWire[(kind*2*blocks+2*i)*size:][:size], memory[2*i*size:])
		}
	}
	require.NoError(t, p.Submit(b, reqs, nil))
	require.Equal(t, before, reqs, "the caller's requests are the caller's")
	wait(t, b)
	require.NoError(t, b.Err())
	require.True(t, bytes.Equal(wantWire, w.memory))
	for kind, memory := range local {
		require.True(t, bytes.Equal(wantWire[kind*2*blocks*size:][:len(memory)], memory), "memory %d", kind)
	}
}

func TestRequestAcrossTheBorderOfDeviceMemoryFailsAlone(t *testing.T) {
	w := &wire{memory: make([]byte, 1<<20)}
	p := startStaged(t, &transporttest.Transport{OnSubmit: w.carry}, nil)
	memory := p.memory(0, 4096)
	b := p.batch(t, 2)
	require.NoError(t, p.Submit(b, []core.Request{
		{Opcode: core.Write, Local: at(memory) + 4000, Target: p.segment, Length: 97},
		{Opcode: core.Write, Local: at(memory), Target: p.segment, Length: 4096},
	}, nil))
	wait(t, b)
	require.Equal(t, []core.State{core.Failed, core.Completed}, states(t, b))
	require.ErrorContains(t, b.Err(), "npu:0")
}

func TestTransportErrorsFailTheirStagedTasksAndNoOthers(t *testing.T) {
	refused := errors.New("refused by the peer")
	p := startStaged(t, &transporttest.Transport{}, nil)
	memory := p.memory(0, 1<<20)
	for _, opcode := range []core.Opcode{core.Write, core.Read} {
		reqs := make([]core.Request, 4)
		for i := range reqs {
			reqs[i] = core.Request{Opcode: opcode, Local: at(memory) + uintptr(i)*1000, Target: p.segment, Length: 1000}
		}
		b := p.batch(t, 4)
		require.NoError(t, p.Submit(b, reqs, nil))
		h := p.arrival()
		h.Settle(1500, 200, refused)
		h.SettleRest(nil)
		wait(t, b)
		require.Equal(t, []core.State{core.Completed, core.Failed, core.Completed, core.Completed}, states(t, b))
		require.ErrorIs(t, b.Err(), refused)
	}
}

// arrival waits for the one work that the transport holds.
func (p *stagedPair) arrival() *transporttest.Held {
	p.t.Helper()
	var held []*transporttest.Held
	require.Eventually(p.t, func() bool {
		held = p.transport.Held()
		return len(held) > 0
	}, longWait, 1000)
	require.Len(p.t, held, 1)
	return held[0]
}

func TestReadThatFailsLeavesNoForeignBytesOnTheDevice(t *testing.T) {
	p := startStaged(t, &transporttest.Transport{}, nil)
	memory := p.memory(0, 4096)
	fill(memory, 9)
	want := slices.Clone(memory)
	b := p.batch(t, 1)
	require.NoError(t, p.Submit(b, []core.Request{{Opcode: core.Read, Local: at(memory), Target: p.segment, Length: 4096}}, nil))
	h := p.arrival()
	h.Settle(0, 1000, nil)
	h.SettleRest(errors.New("lost"))
	wait(t, b)
	require.Equal(t, want, memory)
}

func TestGivenUpStagedTransfersEndAtEveryStep(t *testing.T) {
	for _, opcode := range []core.Opcode{core.Write, core.Read} {
		// More than the pool holds: some of it is with the transport, some waits for a lease.
		p := startStaged(t, &transporttest.Transport{}, func(c *core.Config) { c.StagingPoolSize = 4 << 20 })
		memory := p.memory(0, 16<<20)
		b := p.batch(t, 1)
		require.NoError(t, p.Submit(b, []core.Request{
			{Opcode: opcode, Local: at(memory), Target: p.segment, Length: 16 << 20}}, nil))
		require.Eventually(t, func() bool { return len(p.transport.Held()) > 0 }, longWait, 1000)
		require.NoError(t, p.DiscardBatch(b))
		require.Eventually(t, func() bool { return len(p.transport.Held()) == 0 }, longWait, 1000)
		require.NoError(t, p.Unregister(at(memory)))
		require.NoError(t, p.Close())
	}
}

// The transport wakes threads for each call. The first chunk waits for no other one.
func TestTheChunksOfAReadGoToTheTransportTogether(t *testing.T) {
	transport := &transporttest.Transport{}
	p := startStaged(t, transport, nil)
	read := func(memory []byte) []*transporttest.Held {
		length := uint64(len(memory))
		b := p.batch(t, 1)
		require.NoError(t, p.Submit(b, []core.Request{{Opcode: core.Read, Local: at(memory), Target: p.segment, Length: length}}, nil))
		var held []*transporttest.Held
		eventually(t, func() bool {
			held = transport.Held()
			bytes := uint64(0)
			for _, h := range held {
				bytes += h.Bytes
			}
			return bytes == length
		})
		transport.SettleAll(nil)
		wait(t, b)
		require.NoError(t, b.Err())
		eventually(t, func() bool { // chunks end after their tasks
			return !slices.ContainsFunc(p.Stats().Staging, func(s metrics.Staging) bool { return s.Leased > 0 })
		})
		return held
	}
	memory := p.memory(0, 32<<20)
	read(memory) // makes staging blocks
	before := transport.Calls().Submit
	require.Greater(t, len(read(memory[:4<<20])), 10, "chunks")
	require.Equal(t, 2, transport.Calls().Submit-before, "calls: the first chunk, and all others")
}

func TestClosingTheEngineSettlesWhatIsStaged(t *testing.T) {
	p := startStaged(t, &transporttest.Transport{}, func(c *core.Config) { c.StagingPoolSize = 4 << 20 })
	memory := p.memory(0, 16<<20)
	b := p.batch(t, 2)
	require.NoError(t, p.Submit(b, []core.Request{
		{Opcode: core.Write, Local: at(memory), Target: p.segment, Length: 8 << 20},
		{Opcode: core.Read, Local: at(memory) + 8<<20, Target: p.segment, Length: 8 << 20},
	}, nil))
	require.NoError(t, p.Close())
	wait(t, b)
	require.Equal(t, []core.State{core.Failed, core.Failed}, states(t, b))
	require.ErrorIs(t, b.Err(), core.ErrClosed)
}

func TestRemovedSegmentFailsWhatIsStagedForIt(t *testing.T) {
	p := startStaged(t, &transporttest.Transport{}, func(c *core.Config) { c.StagingPoolSize = 4 << 20 })
	memory := p.memory(0, 16<<20)
	b := p.batch(t, 1)
	require.NoError(t, p.Submit(b, []core.Request{
		{Opcode: core.Write, Local: at(memory), Target: p.segment, Length: 16 << 20}}, nil))
	require.NoError(t, p.RemoveLocalSegment(p.peer.Name()))
	wait(t, b)
	require.Equal(t, []core.State{core.Failed}, states(t, b))
	require.ErrorContains(t, b.Err(), "removed")
}

// The segment is removed while a Submit fetches its descriptor.
func TestSubmitThatTheRemovalOfItsSegmentOvertakesFails(t *testing.T) {
	p := startStaged(t, &transporttest.Transport{}, func(c *core.Config) { c.DisableMetaCache = true })
	for name, memory := range map[string][]byte{"host": pages(t, 4096), "device": p.memory(0, 4096)} {
		b := p.batch(t, 1)
		id := open(t, p.Engine, p.peer.Name())
		held := p.holdFetches()
		submitted := make(chan error, 1)
		go func() {
			submitted <- p.Submit(b, []core.Request{{Opcode: core.Write, Local: at(memory), Target: id, Length: 4096}}, nil)
		}()
		receive(t, held.begun)
		require.NoError(t, p.RemoveLocalSegment(p.peer.Name()))
		p.directory.SetFault(nil)
		held.result <- nil
		require.NoError(t, receive(t, submitted))
		wait(t, b)
		require.Equal(t, []core.State{core.Failed}, states(t, b), name)
		require.ErrorContains(t, b.Err(), "was removed", name)
	}
	require.Empty(t, p.transport.Held())
}

func TestStagingWithoutTransportIsRefused(t *testing.T) {
	p := startStaged(t, &transporttest.Transport{}, nil)
	require.NoError(t, p.RemoveLocalSegment(p.peer.Name()))
	memory := p.memory(0, 4096)
	err := p.Submit(p.batch(t, 1), []core.Request{
		{Opcode: core.Write, Local: at(memory), Target: p.segment, Length: 4096}}, nil)
	require.Equal(t, status.InvalidArgument, status.Of(err, -1))
}

func TestOwnSegmentCopiesBetweenAllKindsOfMemory(t *testing.T) {
	const length = 5<<20 + 13
	p := startStaged(t, &transporttest.Transport{}, nil)
	host := pages(t, 2*length)
	require.NoError(t, p.Register(at(host), uint64(len(host)), "*", true))
	places := [][]byte{host, p.memory(0, 2*length), p.memory(1, 2*length)}
	for i, from := range places {
		for j, to := range places {
			for _, opcode := range []core.Opcode{core.Write, core.Read} {
				fill(from[:length], byte(10*i+j))
				want := slices.Clone(from[:length])
				request := core.Request{Opcode: opcode, Local: at(from), Remote: uint64(at(to)) + 4096, Length: length}
				if opcode == core.Read {
					request.Local, request.Remote = at(to)+4096, uint64(at(from))
				}
				b := p.batch(t, 1)
				require.NoError(t, p.Submit(b, []core.Request{request}, nil))
				wait(t, b)
				require.NoError(t, b.Err())
				require.True(t, bytes.Equal(want, to[4096:][:length]), "%v from %d to %d", opcode, i, j)
			}
		}
	}
}

func TestManyThreadsStageAtOnce(t *testing.T) {
	const threads, rounds, area = 8, 20, 1 << 20
	w := &wire{memory: make([]byte, threads*area)}
	p := startStaged(t, &transporttest.Transport{OnSubmit: w.carry}, func(c *core.Config) {
		c.StagingBlockSize, c.StagingPoolSize = 128<<10, 1<<20
	})
	memory := [][]byte{p.memory(0, threads*area), p.memory(1, threads*area)}
	var running sync.WaitGroup
	for thread := range threads {
		running.Go(func() {
			mine := memory[thread%2][thread*area:][:area]
			for round := range rounds {
				fill(mine, byte(round*threads+thread))
				want := slices.Clone(mine)
				for _, opcode := range []core.Opcode{core.Write, core.Read} {
					b, _ := p.AllocateBatch(64)
					var reqs []core.Request
					for offset, step := 0, 0; offset < area && len(reqs) < 64; offset += step {
						step = min(1+offset*7919%60000, area-offset)
						reqs = append(reqs, core.Request{Opcode: opcode, Local: at(mine[offset:]), Target: p.segment,
							Remote: uint64(thread*area + offset), Length: uint64(step)})
					}
					if err := p.Submit(b, reqs, nil); err != nil {
						t.Error(err)
						return
					}
					done := make(chan struct{})
					b.OnDone(func() { close(done) })
					<-done
					if b.Err() != nil || !bytes.Equal(want, mine) {
						t.Errorf("thread %d, round %d, %v: %v", thread, round, opcode, b.Err())
					}
					if last := reqs[len(reqs)-1]; opcode == core.Write { // the READ has to bring it back
						clear(mine[:min(area, int(last.Remote+last.Length)-thread*area)])
					}
				}
			}
		})
	}
	running.Wait()
}
