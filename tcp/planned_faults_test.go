package tcp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/shut"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// twoCaches are a cache with two heads at a target, and one with the second of them at an engine that has opened the target.
// They move in runs of `run` bytes.
type twoCaches struct {
	target, e *core.Engine
	far, near *cache
	id        core.SegmentID
}

func newCaches(t testing.TB, run uint64, change ...func(*core.Config)) *twoCaches {
	return newCachesOn(t, inHost, run, change...)
}

// newCachesOn has the memory of the engine on a new device; on returns nil for host memory.
func newCachesOn(t testing.TB, newHost func() *device.Host, run uint64, change ...func(*core.Config)) *twoCaches {
	const bytes = 4 << 20
	blocks := bytes / (8 * 2 * 16 * run)
	on := newHost()
	if on != nil {
		t.Cleanup(func() { require.Empty(t, on.Leaks()) })
	}
	c := &twoCaches{
		far:  headsOf(t, blocks, layout.Span{Count: 2}, 2, run),
		near: headsOn(t, on, blocks, layout.Span{First: 1, Count: 1}, 2, run),
	}
	c.target, c.e = newEngine(t, change...), engineOn(t, on, change...)
	require.NoError(t, c.target.Register(hostmem.AddressOf(c.far.memory), uint64(len(c.far.memory)), "cpu:0", true))
	require.NoError(t, c.e.Register(hostmem.AddressOf(c.near.memory), uint64(len(c.near.memory)), "*", true))
	c.id = tcptest.OpenSegment(t, c.e, c.target.Name())
	return c
}

// plan is the transfer of some blocks, and the memory of its destination as it should be afterwards.
func (c *twoCaches) plan(t testing.TB, op core.Opcode, blocks []uint64) (transfer *layout.Transfer, want []byte) {
	source, destination := *c.far, *c.near
	if op == core.Write {
		source, destination = destination, source
	}
	source.Blocks, destination.Blocks = blocks, blocks
	request := layout.Request{Sources: []layout.Place{source.Place}, Destinations: []layout.Place{destination.Place}, Tokens: 16 * uint64(len(blocks)), Partial: true}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	return plan.Transfers[0], apply(plan.Transfers[0], &source, &destination)
}

func (c *twoCaches) destination(op core.Opcode) []byte {
	if op == core.Write {
		return c.far.memory
	}
	return c.near.memory
}

func (c *twoCaches) submit(t testing.TB, op core.Opcode, transfer *layout.Transfer) *core.Batch {
	b, err := c.e.SubmitPlanned(core.Planned{Opcode: op, Target: c.id, Transfer: transfer}, 0)
	require.NoError(t, err)
	return b
}

// waitForBytes returns when a batch is under way, or has ended.
func waitForBytes(t testing.TB, b *core.Batch) {
	require.Eventually(t, func() bool { return b.Progress().Moved > 0 || b.Done() }, tcptest.Patience, 50*time.Microsecond)
}

func (c *twoCaches) allBlocks() (all []uint64) { return c.far.Blocks }

// killSome breaks data connections at the target until stop is called. Between two of them something has moved.
func killSome(t, initiator *Transport) (stop func()) {
	var killer sync.WaitGroup
	over := make(chan struct{})
	killer.Go(func() {
		pause := time.NewTicker(time.Millisecond)
		defer pause.Stop()
		var moved, before uint64
		for {
			select {
			case <-over:
				return
			case <-pause.C:
			}
			moved = 0
			for _, link := range initiator.client.Links() {
				moved += link.BytesIn + link.BytesOut
			}
			if moved == before {
				continue
			}
			before = moved
			for _, one := range tcptest.SocketsOf(t.Endpoint().Port) {
				if one.Accepted {
					_ = shut.Reset(one.File) // fails when closed meanwhile
					break
				}
			}
		}
	})
	return sync.OnceFunc(func() {
		close(over)
		killer.Wait()
	})
}

func inHost() *device.Host { return nil }

// hostAndDevice are places for the memory of an initiator.
var hostAndDevice = map[string]func() *device.Host{"host": inHost, "device": npus}

func TestTransfersOfPlansArriveWhileConnectionsBreak(t *testing.T) {
	for place, on := range hostAndDevice {
		t.Run(place, func(t *testing.T) { arriveWhileConnectionsBreak(t, on) })
	}
}

func arriveWhileConnectionsBreak(t *testing.T, on func() *device.Host) {
	random := rand.New(rand.NewPCG(rand.Uint64(), 1))
	for _, run := range []uint64{16, 256, 8 << 10} {
		c := newCachesOn(t, on, run, func(config *core.Config) { config.RetryCount = 127 })
		stop := killSome(transportOf(t, c.target), transportOf(t, c.e))
		defer stop()
		for round := range 12 {
			op := core.Opcode(round % 2)
			for _, memory := range [][]byte{c.near.memory, c.far.memory} {
				for range 100 {
					memory[random.IntN(len(memory))]++
				}
			}
			blocks := slices.Clone(c.allBlocks())
			random.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
			most := min(len(blocks), 128) // of short runs, which take long under the race detector, as many as some requests have
			transfer, want := c.plan(t, op, blocks[:1+random.IntN(most)])
			b := c.submit(t, op, transfer)
			tcptest.Completes(t, b)
			require.True(t, bytes.Equal(want, c.destination(op)), "runs of %d, round %d", run, round)
			require.NoError(t, c.e.FreeBatch(b))
		}
		stop()
	}
}

func TestATransferOfAPlanThatWasGivenUpTouchesNothingAfterwards(t *testing.T) {
	for place, on := range hostAndDevice {
		for _, sameHost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, one host: %v", place, sameHost), func(t *testing.T) { touchesNothingAfterwards(t, on, sameHost) })
		}
	}
}

func touchesNothingAfterwards(t *testing.T, on func() *device.Host, sameHost bool) {
	c := newCachesOn(t, on, 64, func(config *core.Config) { config.SameHost = sameHost })
	for round := range 10 {
		op := core.Opcode(round % 2)
		transfer, _ := c.plan(t, op, c.allBlocks())
		b := c.submit(t, op, transfer)
		waitForBytes(t, b)
		require.NoError(t, c.e.DiscardBatch(b))
		tcptest.Wait(t, b)
		// Local memory is the caller's again. Bytes of a WRITE may land at the target until a later one is acknowledged.
		tcptest.Fill(c.near.memory, byte(round))
		mine := slices.Clone(c.near.memory)
		later, _ := c.plan(t, core.Write, c.allBlocks()[:5])
		next := c.submit(t, core.Write, later)
		tcptest.Completes(t, next)
		require.True(t, bytes.Equal(mine, c.near.memory))
		_, want := c.plan(t, core.Write, c.allBlocks()[:5]) // changes nothing where that has arrived
		require.True(t, bytes.Equal(want, c.far.memory), "the later WRITE is what is there")
		require.NoError(t, c.e.FreeBatch(next))
	}
}

func TestMemoryOfATransferOfAPlanIsUnregisteredWhileItIsUsed(t *testing.T) {
	for place, on := range hostAndDevice {
		t.Run(place, func(t *testing.T) { unregisteredWhileItIsUsed(t, on) })
	}
}

func unregisteredWhileItIsUsed(t *testing.T, on func() *device.Host) {
	for _, op := range []core.Opcode{core.Read, core.Write} {
		for _, atTarget := range []bool{false, true} {
			c := newCachesOn(t, on, 64)
			for range 4 {
				transfer, _ := c.plan(t, op, c.allBlocks())
				b := c.submit(t, op, transfer)
				waitForBytes(t, b)
				owner, memory := c.e, c.near.memory
				if atTarget {
					owner, memory = c.target, c.far.memory
				}
				require.NoError(t, owner.Unregister(hostmem.AddressOf(memory)))
				tcptest.Fill(memory, 9)
				mine := slices.Clone(memory)
				tcptest.Wait(t, b)
				require.True(t, bytes.Equal(mine, memory))
				require.NoError(t, owner.Register(hostmem.AddressOf(memory), uint64(len(memory)), "*", true))
				require.NoError(t, c.e.FreeBatch(b))
			}
		}
	}
}

func TestATransferOfAPlanFailsAloneWhoseMemoryIsGone(t *testing.T) {
	for _, op := range []core.Opcode{core.Read, core.Write} {
		for _, atTarget := range []bool{false, true} {
			c := newCaches(t, 64)
			memory, want := c.near.memory, "cannot be accessed at 0x"
			if atTarget {
				memory, want = c.far.memory, "cannot access it"
			}
			page := memory[len(memory)/2+64<<10:][:4096] // the first block does not reach it
			all, _ := c.plan(t, op, c.allBlocks())
			some, _ := c.plan(t, op, c.allBlocks()[:1])
			require.NoError(t, unix.Mprotect(page, unix.PROT_NONE))
			b := c.submit(t, op, all)
			tcptest.Wait(t, b)
			require.ErrorContains(t, b.Err(), want)
			tcptest.Completes(t, c.submit(t, op, some))
			require.NoError(t, unix.Mprotect(page, unix.PROT_READ|unix.PROT_WRITE))
		}
	}
}

func TestShortRunsTravelTogetherAndLongRunsByThemselves(t *testing.T) {
	for run, wanted := range map[uint64]uint64{64: 256, 8 << 10: 512} { // a request for each block, and one for each run
		c := newCaches(t, run)
		for _, op := range []core.Opcode{core.Read, core.Write} {
			transfer, _ := c.plan(t, op, c.allBlocks())
			require.EqualValues(t, 4<<20/run, transfer.Runs)
			tcptest.Completes(t, c.submit(t, op, transfer))
		}
		at := served(t, c.target, wanted)
		require.EqualValues(t, wanted, at.Read.Requests)
		require.EqualValues(t, wanted, at.Write.Requests)
	}
}
