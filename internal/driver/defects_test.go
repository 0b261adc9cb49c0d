package driver_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/core/transporttest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The tests of these files are of mistakes that staging device memory for TCP invites: one for each, by number. Whole
// engines move the memory of simulated devices over the loopback interface. Here are those of wrong and missing bytes.

// A staging block must not be used again while its bytes are on their way.
func TestDefect01BlocksAreNotUsedAgainWhileTheyAreBeingSent(t *testing.T) {
	onAll(t, blocksAreNotUsedAgainWhileTheyAreBeingSent)
}

func blocksAreNotUsedAgainWhileTheyAreBeingSent(t *testing.T, k *kind) {
	t.Run("to a target that stalls", writeToAStalledTarget)
	t.Run("to an initiator that stalls", readByAStalledInitiator)
	t.Run("to the device", func(t *testing.T) {
		simtest.NoLeaks(t)
		app := newDevice(t, 0)
		p := startPair(t, small)
		simtest.Seed(t, 1)
		local, remote := p.initiator.on(app, 4*mib), p.target.onHost(4*mib)
		p.initiator.transfer(core.Read, local, p.segment, remote, scattered(4*mib, 30*kib, 100*kib)...)
		p.initiator.transfer(core.Write, local, p.segment, remote, scattered(4*mib, 30*kib, 100*kib)...)
	})
}

// manyBlocks is the length of a transfer that takes many staging blocks.
const manyBlocks = 16 * mib

func writeToAStalledTarget(t *testing.T) {
	simtest.NoLeaks(t)
	app := newDevice(t, 0)
	var mu sync.Mutex
	received, answered := make([]byte, manyBlocks), make(chan struct{})
	peer := startPeer(t, func(conn *net.TCPConn) {
		for {
			h, err := readHeader(conn)
			if err != nil {
				return
			}
			mu.Lock()
			_, err = io.ReadFull(conn, received[h.addr-rawBase:][:h.length])
			mu.Unlock()
			if !assert.NoError(t, err) {
				return
			}
			<-answered
			assert.NoError(t, answer(conn))
		}
	})
	answers := sync.OnceFunc(func() { close(answered) })
	t.Cleanup(answers)
	n := startNode(t, func(c *core.Config) {
		small(c)
		c.LanesPerPeer = 1
	})
	local := n.on(app, manyBlocks)
	want := local.read()
	simtest.ResetCounters(t)
	b := n.submit(core.Request{Opcode: core.Write, Local: local.addr, Target: n.opens(peer.name), Remote: rawBase, Length: manyBlocks})
	eventually(t, func() bool { return simtest.TakeReport(t).CopiedBytes["d2h"] >= 128*kib }, "the blocks get filled")
	require.LessOrEqual(t, simtest.TakeReport(t).CopiedBytes["d2h"], uint64(smallHalf), "copied to blocks before any is free again")
	answers()
	n.wait(b)
	require.NoError(t, b.Err())
	mu.Lock()
	defer mu.Unlock()
	require.True(t, bytes.Equal(want, received), "bytes were overwritten before they were sent")
}

func readByAStalledInitiator(t *testing.T) {
	simtest.NoLeaks(t)
	const each, rounds = 128 * kib, 4
	app := newDevice(t, 0)
	n := startNode(t, small)
	memory := n.on(app, manyBlocks)
	want := memory.read()
	simtest.ResetCounters(t)
	conn := n.dialRaw()
	var reads []byte
	for at := 0; at < rounds*manyBlocks; at += each {
		reads = append(reads, header{each, uint64(memory.addr) + uint64(at%manyBlocks), core.Read}.encode()...)
	}
	_, err := conn.Write(reads)
	require.NoError(t, err)
	eventually(t, func() bool { return simtest.TakeReport(t).CopiedBytes["d2h"] >= smallHalf }, "the blocks get filled")
	callsAtRest(t) // the sockets are full, and blocks wait to be sent
	require.Less(t, simtest.TakeReport(t).CopiedBytes["d2h"], uint64(rounds*manyBlocks), "the initiator does stall it")
	got := make([]byte, 8+each)
	for at := 0; at < rounds*manyBlocks; at += each {
		_, err := io.ReadFull(conn, got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want[at%manyBlocks:][:each], got[8:]), "the bytes at %d", at)
	}
}

// What part of the staging memory is whose must not be read and written by several threads without one lock.
func TestDefect02ManyThreadsShareTheBlocks(t *testing.T) { onAll(t, manyThreadsShareTheBlocks) }

func manyThreadsShareTheBlocks(t *testing.T, k *kind) {
	t.Run("leasing", leaseFromManyThreads)
	t.Run("transfers", transferFromManyThreads)
}

// leaseFromManyThreads has each thread mark the blocks that it leases, and find its marks still there.
func leaseFromManyThreads(t *testing.T) {
	simtest.NoLeaks(t)
	s := stagingOf(t, 0)
	var running sync.WaitGroup
	for i := range 8 {
		running.Go(func() {
			a := s.Account(staging.Out, staging.Role(i%2), nil)
			defer a.Close()
			for range 100 {
				l, err := a.Lease(t.Context(), uint64(1+i)*16*kib)
				if !assert.NoError(t, err) {
					return
				}
				marks := bytes.Repeat([]byte{byte(i)}, 1000)
				block := hostmem.At(l.Addr, l.Length)
				copy(block, marks)
				runtime.Gosched()
				assert.True(t, bytes.Equal(marks, block[:len(marks)]), "somebody else has the block as well")
				l.Release()
			}
		})
	}
	running.Wait()
	require.NoError(t, s.Close())
}

// transferFromManyThreads has two engines be initiator and target of each other's transfers.
func transferFromManyThreads(t *testing.T) {
	simtest.NoLeaks(t)
	const threads, area = 8, 512 * kib
	apps := []*accelerator{newDevice(t, 0), newDevice(t, 1)}
	there := startPair(t, small)
	back := &pair{initiator: there.target, target: there.initiator, segment: there.target.opens(there.initiator.Name())}
	for seed := range uint64(2) {
		simtest.Seed(t, seed)
		var running sync.WaitGroup
		var checks []func()
		for i := range threads {
			p, op := []*pair{there, back}[i%2], core.Opcode(i/2%2)
			local, remote := p.initiator.on(apps[i/4], area), p.target.on(apps[i%2], area)
			to, from := ways[op](local, remote)
			spans := scattered(area, 1000+i, 70*kib, 5000, 4*kib, 200*kib)
			want := moved(to, from, spans...)
			checks = append(checks, func() { requireBytes(t, want, to) })
			running.Go(func() {
				for some := range slices.Chunk(requests(op, local, p.segment, remote, spans...), 3) {
					b, err := p.initiator.AllocateBatch(len(some))
					if !assert.NoError(t, err) || !assert.NoError(t, p.initiator.Submit(b, some, nil)) {
						return
					}
					<-ended(b)
					assert.NoError(t, b.Err())
				}
			})
		}
		running.Wait()
		for _, check := range checks {
			check()
		}
	}
}

// Small blocks that are gathered on the device must be there before what was gathered is copied on.
func TestDefect03GatheringIsAwaited(t *testing.T) { onAll(t, gatheringIsAwaited) }

func gatheringIsAwaited(t *testing.T, k *kind) {
	simtest.NoLeaks(t)
	app := newDevice(t, 0)
	p := startPair(t, small)
	local, remote := p.initiator.on(app, mib), p.target.on(app, mib)
	simtest.Faults(t, k.noBatches)
	for seed := range uint64(6) {
		simtest.Seed(t, seed)
		for op := range ways {
			simtest.ResetCounters(t)
			spans := scattered(mib, 4096, 900+int(seed), 2048)
			p.initiator.transfer(op, local, p.segment, remote, spans...)
			copies := simtest.TakeReport(t).Copies
			if k.gathers {
				require.GreaterOrEqual(t, copies["d2d"], uint64(len(spans)), "blocks are gathered at one end at least, and scattered at the other")
			} else {
				require.GreaterOrEqual(t, copies["d2h"]+copies["h2d"], uint64(2*len(spans)), "each block is copied by itself")
			}
			local.write(noise(mib))
		}
	}
}

// A request that is longer than a staging block, or just as long, must end.
func TestDefect04RequestsLongerThanABlockEnd(t *testing.T) { onAll(t, requestsLongerThanABlockEnd) }

func requestsLongerThanABlockEnd(t *testing.T, k *kind) {
	simtest.NoLeaks(t)
	const block = 128 * kib
	app := newDevice(t, 0)
	p := startPair(t, small)
	local, remote := p.initiator.on(app, 9*mib), p.target.on(app, 9*mib)
	for _, length := range []int{block - 1, block, block + 1, 2 * block, 3*block + 7, 8*mib + 1} {
		for op := range ways {
			p.initiator.transfer(op, local, p.segment, remote, span{0, length})
		}
	}
	p.initiator.transfer(core.Write, local, p.segment, remote, scattered(9*mib, 64, block, 5*block-3, 1)...)
}

// Every request of a batch must be asked which memory it is about, not just the first.
func TestDefect05ABatchMixesHostMemoryAndDevices(t *testing.T) {
	onAll(t, aBatchMixesHostMemoryAndDevices)
}

func aBatchMixesHostMemoryAndDevices(t *testing.T, k *kind) {
	simtest.NoLeaks(t)
	const length = 300 * kib
	one, zero := newDevice(t, 1), newDevice(t, 0)
	for op, way := range ways {
		p := startPair(t, nil)
		locals := []*memory{p.initiator.onHost(length), p.initiator.on(one, length), p.initiator.on(zero, length)}
		remotes := []*memory{p.target.on(zero, length), p.target.onHost(length), p.target.on(one, length)}
		for range locals { // each comes first once
			var reqs []core.Request
			var want [][]byte
			for i, local := range locals {
				local.write(noise(length))
				remotes[i].write(noise(length))
				to, from := way(local, remotes[i])
				spans := scattered(length, 4096, 65*kib)
				reqs = append(reqs, requests(op, local, p.segment, remotes[i], spans...)...)
				want = append(want, moved(to, from, spans...))
			}
			b := p.initiator.submit(reqs...)
			p.initiator.wait(b)
			require.NoError(t, b.Err())
			for i, local := range locals {
				to, _ := way(local, remotes[i])
				requireBytes(t, want[i], to)
			}
			locals, remotes = append(locals[1:], locals[0]), append(remotes[1:], remotes[0])
		}
	}
}

// READ must copy the bytes to the device, and not the device's old bytes from it.
func TestDefect06BytesThatAreReadComeToTheDevice(t *testing.T) {
	onAll(t, bytesThatAreReadComeToTheDevice)
}

func bytesThatAreReadComeToTheDevice(t *testing.T, k *kind) {
	simtest.NoLeaks(t)
	const length = 700 * kib
	app, other := newDevice(t, 0), newDevice(t, 1)
	p := startPair(t, nil)
	spans := scattered(length, 1, 4096, 300*kib, 5000)
	local, host := p.initiator.on(app, length), p.target.onHost(length)
	simtest.ResetCounters(t)
	p.initiator.transfer(core.Read, local, p.segment, host, spans...)
	report := simtest.TakeReport(t)
	require.EqualValues(t, 2, report.Copies["d2h"], "only the test itself looks at what is on the device")
	require.NotZero(t, report.Copies["h2d"])

	remote := p.target.on(other, length)
	p.initiator.transfer(core.Read, local, p.segment, remote, spans...)
	p.initiator.transfer(core.Read, p.initiator.onHost(length), p.segment, remote, spans...)
}

// A copy that fails must fail its tasks, at once and with the reason, and no others.
func TestDefect07CopiesThatFailFailTheirTasks(t *testing.T) { onAll(t, copiesThatFailFailTheirTasks) }

func copiesThatFailFailTheirTasks(t *testing.T, k *kind) {
	run := func(name string, test func(*testing.T)) {
		require.True(t, t.Run(name, test)) // the first that fails ends it: some that do take long
	}
	for spec, reason := range k.failures() {
		for op := range ways {
			run(fmt.Sprintf("%v by an initiator, %s", op, spec), func(t *testing.T) { copyFailsAtTheInitiator(t, op, spec, reason) })
		}
	}
	run("READ by an initiator, of a batch", func(t *testing.T) { refusedBatchIsCopiedOneByOne(t, k) })
	for op := range ways {
		run(fmt.Sprintf("%v of a target", op), func(t *testing.T) { copyFailsAtTheTarget(t, k, op) })
	}
}

// failures are faults that have copies fail, each with a text that the error must contain.
func (k *kind) failures() map[string]string {
	if k == npus {
		return map[string]string{
			"exec:1": "507013",
			"exec:3": "507013",
			k.noBatches + ",aclrtMemcpyAsync:1,aclrtMemcpyAsync:2": "aclrtMemcpyAsync", // together, and by itself
			"aclrtRecordEvent:1":                    "aclrtRecordEvent",
			"aclrtSynchronizeEventWithTimeout:1":    "aclrtSynchronizeEventWithTimeout",
			"aclrtCreateStream:1":                   "aclrtCreateStream",
			"aclrtCreateEvent:1":                    "aclrtCreateEvent",
			"aclrtMallocHost:1":                     "aclrtMallocHost",
			"aclrtSetDevice:1+":                     "aclrtSetDevice",
			"aclrtSynchronizeEventWithTimeout:1+":   "aclrtSynchronizeEventWithTimeout",
			"aclrtMemcpyAsync:1+," + k.noBatches:    "aclrtMemcpyAsync",
			"aclrtMallocHost:1+,aclrtRecordEvent:1": "aclrtMallocHost",
		}
	}
	return map[string]string{
		// The second time is when a task is copied by itself.
		k.noBatches + ",cuMemcpyDtoHAsync_v2:1,cuMemcpyDtoHAsync_v2:2,cuMemcpyHtoDAsync_v2:1,cuMemcpyHtoDAsync_v2:2": "cuMemcpy",
		k.noBatches + ",cuMemcpyDtoHAsync_v2:1+,cuMemcpyHtoDAsync_v2:1+":                                             "cuMemcpy",
		"cuEventRecord:1":                   "cuEventRecord",
		"cuEventQuery:1":                    "cuEventQuery",
		"cuEventQuery:1+":                   "cuEventQuery",
		"cuStreamCreateWithPriority:1":      "cuStreamCreateWithPriority",
		"cuEventCreate:1":                   "cuEventCreate",
		"cuMemHostAlloc:1":                  "cuMemHostAlloc",
		"cuDevicePrimaryCtxRetain:1+":       "cuDevicePrimaryCtxRetain",
		"cuMemHostAlloc:1+,cuEventRecord:1": "cuMemHostAlloc",
	}
}

// A device may refuse to copy blocks together whose memory is fine.
func refusedBatchIsCopiedOneByOne(t *testing.T, k *kind) {
	simtest.NoLeaks(t)
	const length = 200 * kib
	p := startPair(t, nil)
	local, remote := p.initiator.on(newDevice(t, 0), length), p.target.onHost(length)
	simtest.Faults(t, k.noKernel+k.batch+":1")
	p.initiator.transfer(core.Read, local, p.segment, remote, scattered(length, 4096, 70*kib, 1000)...)
	simtest.Faults(t, "")
	require.Contains(t, fmt.Sprint(p.initiator.logs.FilterMessage("a staging job failed").All()), strings.TrimSuffix(k.batch, "_v2"))
}

func copyFailsAtTheInitiator(t *testing.T, op core.Opcode, spec, reason string) {
	simtest.NoLeaks(t)
	const length = 200 * kib
	app := newDevice(t, 0)
	p := startPair(t, nil)
	spans := scattered(length, 4096, 70*kib, 1000)
	local, host := p.initiator.on(app, length), p.initiator.onHost(length)
	remote, remoteOfHost := p.target.onHost(length), p.target.onHost(length)
	to, from := ways[op](host, remoteOfHost)
	want := moved(to, from, spans...)

	simtest.Faults(t, spec)
	b := p.initiator.submit(append(requests(op, local, p.segment, remote, spans...), requests(op, host, p.segment, remoteOfHost, spans...)...)...)
	p.initiator.wait(b)
	require.ErrorContains(t, b.Err(), reason)
	require.Equal(t, 1, p.initiator.logs.FilterMessage("transfer failed").Len())
	states := p.initiator.states(b)
	require.Contains(t, states[:len(spans)], core.Failed)
	require.NotContains(t, states[len(spans):], core.Failed, "host memory has nothing to do with it")
	requireBytes(t, want, to)
	simtest.Faults(t, "")
	require.NotZero(t, simtest.TakeReport(t).Leaked.DeviceBytes)

	p.initiator.transfer(op, local, p.segment, remote, spans...)
}

func copyFailsAtTheTarget(t *testing.T, k *kind, op core.Opcode) {
	simtest.NoLeaks(t)
	const length = 200 * kib
	lost, kept := newDevice(t, 0), newDevice(t, 1)
	p := startPair(t, func(c *core.Config) { c.RetryCount = 1 })
	spans := scattered(length, 4096, 70*kib)
	onLost, onKept := p.target.on(lost, length), p.target.on(kept, length)
	local, localOfKept := p.initiator.onHost(length), p.initiator.onHost(length)
	to, from := ways[op](localOfKept, onKept)
	for i, remote := range []*memory{onLost, onKept} { // there are blocks and streams from here on
		p.initiator.transfer(op, []*memory{local, localOfKept}[i], p.segment, remote, spans[:1]...)
	}
	want := moved(to, from, spans...)
	simtest.Faults(t, "lost:0@0")
	b := p.initiator.submit(append(requests(op, local, p.segment, onLost, spans...), requests(op, localOfKept, p.segment, onKept, spans...)...)...)
	p.initiator.wait(b)
	require.ErrorContains(t, b.Err(), p.target.Name())
	for i, state := range p.initiator.states(b) {
		require.Equal(t, i < len(spans), state == core.Failed, "task %d", i)
	}
	requireBytes(t, want, to)
	require.Contains(t, p.target.field("data request failed", "reason"), k.lost)
	simtest.Faults(t, "")
}

// What fails at the peer, or on the way there, must not count as done.
func TestDefect08AnErrorOfTheConnectionIsAFailedTask(t *testing.T) {
	onAll(t, anErrorOfTheConnectionIsAFailedTask)
}

func anErrorOfTheConnectionIsAFailedTask(t *testing.T, k *kind) {
	for op, way := range ways {
		t.Run(fmt.Sprintf("%v that the peer refuses", op), func(t *testing.T) {
			simtest.NoLeaks(t)
			const length = 100 * kib
			app := newDevice(t, 0)
			p := startPair(t, nil)
			local, remote := p.initiator.on(app, length), p.target.on(app, length)
			spans := scattered(length, 10*kib)
			reqs := requests(op, local, p.segment, remote, spans...)
			bad := 3
			reqs[bad].Remote = rawBase
			to, from := way(local, remote)
			want := moved(to, from, slices.Delete(slices.Clone(spans), bad, bad+1)...)
			b := p.initiator.submit(reqs...)
			p.initiator.wait(b)
			require.ErrorContains(t, b.Err(), p.target.Name())
			for i, state := range p.initiator.states(b) {
				require.Equal(t, i == bad, state == core.Failed, "task %d", i)
			}
			requireBytes(t, want, to)
		})
		t.Run(fmt.Sprintf("%v from a peer that dies", op), func(t *testing.T) {
			simtest.NoLeaks(t)
			const length = 3 * mib
			app := newDevice(t, 0)
			n := startNode(t, func(c *core.Config) { c.RetryCount = 1 })
			peer := startPeer(t, func(conn *net.TCPConn) {
				if h, err := readHeader(conn); err == nil && h.op == core.Write {
					_, _ = io.CopyN(io.Discard, conn, int64(h.length/2)) // of which it answers nothing
				}
			})
			local := n.on(app, length)
			before := local.read()
			b := n.submit(requests(op, local, n.opens(peer.name), &memory{addr: rawBase}, scattered(length, mib)...)...)
			n.wait(b)
			require.ErrorContains(t, b.Err(), peer.name)
			require.Zero(t, b.Summary().Completed)
			require.Zero(t, b.Summary().Bytes)
			requireBytes(t, before, local)
		})
	}
}

// Lengths and offsets must not pass through 32 bits.
func TestDefect09LengthsOfMoreThan32Bits(t *testing.T) { onAll(t, lengthsOfMoreThan32Bits) }

func lengthsOfMoreThan32Bits(t *testing.T, k *kind) {
	t.Run("of a request", longRequest)
	t.Run("at a target", longRequestToATarget)
	t.Run("of a region", blocksBehindBorders)
}

// longRequest stages a whole request for a transport that moves nothing.
func longRequest(t *testing.T) {
	simtest.NoLeaks(t)
	const length = 1<<32 + 3*mib + 5
	const mark = 50 // bytes
	app := newDevice(t, 0)
	local := app.Alloc(length)
	found, want := map[uint64][]byte{}, map[uint64][]byte{}
	for _, at := range []uint64{1<<31 - 64, 1<<31 + 1, 1<<32 - 64, 1<<32 + 1, length - mark} {
		found[at], want[at] = make([]byte, mark), noise(mark)
		app.Write(local+uintptr(at), want[at])
	}
	next, inOrder := uint64(0), true
	look := func(h *transporttest.Held) {
		for i := h.Head; i >= 0; i = h.Tasks[i].Next {
			task := &h.Tasks[i]
			if inOrder = inOrder && task.Remote == next; !inOrder {
				break
			}
			next += task.Length
			for at, bytes := range found {
				from, to := max(at, task.Remote), min(at+mark, next)
				if from < to {
					copy(bytes[from-at:], hostmem.At(task.Local+uintptr(from-task.Remote), to-from))
				}
			}
		}
		h.SettleRest(nil)
	}
	n := newNode(t, nil, simtest.Runtime(t))
	_, err := n.Install("tcp", (&transporttest.Transport{OnSubmit: look}).Open)
	require.NoError(t, err)
	require.NoError(t, n.Register(local, length, app.location, true))
	peer := startNode(t, nil)
	b := n.submit(core.Request{Opcode: core.Write, Local: local, Target: n.opens(peer.Name()), Length: length})
	n.wait(b)
	require.NoError(t, b.Err())
	require.True(t, inOrder, "each part goes on where the last one has ended")
	require.EqualValues(t, length, next)
	require.EqualValues(t, length, b.Summary().Bytes)
	for at := range want {
		require.True(t, bytes.Equal(want[at], found[at]), "the bytes at %d", at)
	}
}

// longRequestToATarget sends requests whose lengths would be small if only 32 bits of them counted, and reads only so much
// of the answers that the two cases differ.
func longRequestToATarget(t *testing.T) {
	simtest.NoLeaks(t)
	for _, length := range []uint64{1<<31 + 64*kib, 1<<32 + 64*kib} {
		app := newDevice(t, 0)
		n := startNode(t, nil)
		addr := app.Alloc(int(length))
		require.NoError(t, n.Register(addr, length, app.location, true))

		reader := n.dialRaw()
		_, err := reader.Write(header{length, uint64(addr), core.Read}.encode())
		require.NoError(t, err)
		_, err = io.CopyN(io.Discard, reader, 8+mib)
		require.NoError(t, err)
		require.NoError(t, reader.Close())

		writer := n.dialRaw()
		_, err = writer.Write(append(header{length, uint64(addr), core.Write}.encode(), make([]byte, mib)...))
		require.NoError(t, err)
		require.NoError(t, writer.(*net.TCPConn).CloseWrite())
		answers, _ := io.ReadAll(writer) // ends with a reset, since most of the payload is missing
		require.Empty(t, answers, "a WRITE of which most is missing is not done")
	}
}

// blocksBehindBorders moves blocks that lie far from the beginning of their regions, on both sides.
func blocksBehindBorders(t *testing.T) {
	simtest.NoLeaks(t)
	const length, around = 1<<32 + 300*kib, 300 * kib
	app, other := newDevice(t, 0), newDevice(t, 1)
	p := startPair(t, nil)
	local, remote := app.Alloc(length), other.Alloc(length)
	require.NoError(t, p.initiator.Register(local, length, app.location, true))
	require.NoError(t, p.target.Register(remote, length, other.location, true))
	for _, border := range []uintptr{1 << 31, 1 << 32} {
		from := border - around/2
		near, far := &memory{local + from, around, app, nil}, &memory{remote + from, around, other, nil}
		for op := range ways {
			near.write(noise(around))
			p.initiator.transfer(op, near, p.segment, far, scattered(around, 100*kib, 4096)...)
		}
	}
}
