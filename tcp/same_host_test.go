package tcp

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

func writeByAddress(addr uintptr, payload []byte) []byte {
	b := make([]byte, wire.HeaderSize)
	wire.PutHeaderByAddress(b, wire.Write, uint64(addr), uint64(len(payload)), uint64(sockio.AddressOf(payload)))
	return b
}

func readByAddress(b []byte) []byte {
	r := make([]byte, wire.HeaderSize)
	wire.PutHeaderByAddress(r, wire.Read, uint64(sockio.AddressOf(b)), uint64(len(b)), 0)
	return r
}

func (c *client) expectGrant(want wire.Grant) {
	c.t.Helper()
	b := make([]byte, wire.GrantSize)
	wire.PutGrant(b, want)
	c.expect(b)
}

func onOneHost(c *core.Config) { c.SameHost = true }

// neighbours are an engine with registered memory and the bytes of it, and another engine that has opened it.
func neighbours(t testing.TB, length int, change ...func(*core.Config)) (target, e *core.Engine, memory, local []byte, id core.SegmentID) {
	t.Helper()
	target, e = engine(t, onOneHost), engine(t, append([]func(*core.Config){onOneHost}, change...)...)
	memory, local = tcptest.Mapped(t, length), tcptest.Mapped(t, length)
	tcptest.Fill(memory, 1)
	require.NoError(t, target.Register(sockio.AddressOf(memory), uint64(length), "cpu:0", true))
	return target, e, memory, local, open(t, e, target.Name())
}

// lanes are those to the only peer of an engine.
func lanes(t testing.TB, e *core.Engine) []*lane {
	t.Helper()
	p := onlyPeer(t, e)
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*lane
	for _, c := range p.listed() {
		if l, ok := c.(*lane); ok {
			all = append(all, l)
		}
	}
	return all
}

// fetches reports whether a lane gets bytes without their being sent.
func (l *lane) fetches() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, known := l.reach.Proof()
	return l.reach.Reachable() && known
}

func TestPayloadNamedByItsAddressIsFetched(t *testing.T) {
	memory := tcptest.Mapped(t, 4<<20)
	h := serve(t, targetOptions{}, memory)
	c := h.dialNeighbour()
	for i, length := range lengths {
		payload := tcptest.Mapped(t, length)
		tcptest.Fill(payload, byte(i))
		c.send(writeByAddress(sockio.AddressOf(memory)+3, payload))
		c.expectStatus(wire.StatusOK)
		require.True(t, bytes.Equal(payload, memory[3:3+length]), length)
	}
	require.Positive(t, h.target.links()[0].BytesIn)
}

func TestPayloadThatCannotBeFetchedIsAskedForAndTheOthersOfTheTurnArrive(t *testing.T) {
	memory, payload, gone := tcptest.Mapped(t, 3*4096), tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(payload, 1)
	tcptest.Unmap(t, gone)
	c := serve(t, targetOptions{}, memory).dialNeighbour()
	at := sockio.AddressOf(memory)
	c.send(writeByAddress(at, payload), writeByAddress(at+4096, gone), writeByAddress(at+2*4096, payload))
	c.expectStatus(wire.StatusOK)
	c.expectStatus(wire.StatusOutOfReach)
	c.expectStatus(wire.StatusOK)
	require.Equal(t, payload, memory[:4096])
	require.Equal(t, payload, memory[2*4096:])
	c.send(writeV2(at+4096, payload))
	c.expectStatus(wire.StatusOK)
}

func TestPayloadsForTheSamePlaceAreFetchedInTheirOrder(t *testing.T) {
	memory, first, second := tcptest.Mapped(t, 8192), tcptest.Mapped(t, 8192), tcptest.Mapped(t, 4096)
	tcptest.Fill(first, 1)
	tcptest.Fill(second, 2)
	third := tcptest.Pattern(100, 3)
	c := serve(t, targetOptions{}, memory).dialNeighbour()
	at := sockio.AddressOf(memory)
	c.send(writeByAddress(at, first), writeByAddress(at+2048, second), writeV2(at+2048, third), readV2(memory[:4096]))
	for range 4 {
		c.expectStatus(wire.StatusOK)
	}
	want := append(bytes.Clone(first[:2048]), third...)
	c.expect(append(want, second[100:2048]...))
}

func TestAReadByAddressIsGrantedTheWholeRegion(t *testing.T) {
	memory := tcptest.Mapped(t, 8192)
	h := serve(t, targetOptions{}, memory)
	h.memory.epoch.Store(77)
	c := h.dialNeighbour()
	c.send(readByAddress(memory[100:200]))
	c.expectStatus(wire.StatusOK)
	b := make([]byte, wire.GrantSize)
	_, err := c.conn.Read(b)
	require.NoError(t, err)
	g := wire.ParseGrant(b)
	require.EqualValues(t, sockio.AddressOf(memory), g.Addr)
	require.EqualValues(t, len(memory), g.Length)
	require.EqualValues(t, 77, g.Epoch)
}

func TestDeviceMemoryIsOutOfReach(t *testing.T) {
	a := accelerate(t, staging.Options{BlockSize: 1 << 20, PoolSize: 4 << 20})
	device := a.memory(8192)
	c := a.serve(targetOptions{}, device).dialNeighbour()
	payload := tcptest.Mapped(t, 4096)
	c.send(writeByAddress(sockio.AddressOf(device), payload), readByAddress(device[:10]))
	c.expectStatus(wire.StatusOutOfReach)
	c.expectStatus(wire.StatusOutOfReach)
	c.expectGrant(wire.Grant{})
}

func TestABadRangeByAddressIsRejected(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 8192)
	h := serve(t, targetOptions{}, memory)
	for _, bad := range [][]byte{writeByAddress(sockio.AddressOf(memory), payload), readByAddress(payload)} {
		c := h.dialNeighbour()
		c.send(bad)
		c.expectStatus(wire.StatusRejected)
		c.expectEnd()
	}
}

func TestAStrangerMayNotNameAddresses(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, targetOptions{}, memory)
	c := h.dial()
	c.send(writeByAddress(sockio.AddressOf(memory), tcptest.Mapped(t, 4096)))
	c.expectReset()
	require.Equal(t, make([]byte, 4096), memory)
}

func TestNeighboursMoveBlocksInBothDirections(t *testing.T) {
	for _, size := range []int{1, 100, leastByAddress, 64 << 10, 3<<20 + 1} {
		const n = 20
		_, e, memory, local, id := neighbours(t, n*(size+1))
		completes(t, submit(t, e, scattered(core.Read, local, id, memory, n, size)...))
		completes(t, submit(t, e, scattered(core.Read, local, id, memory, n, size)...))
		for i := range n {
			at := i * (size + 1)
			require.True(t, bytes.Equal(memory[at:at+size], local[at:at+size]), "block %d of %d bytes", i, size)
		}
		tcptest.Fill(local, 2)
		completes(t, submit(t, e, scattered(core.Write, local, id, memory, n, size)...))
		for i := range n {
			at := i * (size + 1)
			require.True(t, bytes.Equal(memory[at:at+size], local[at:at+size]), "block %d of %d bytes", i, size)
		}
		for _, l := range lanes(t, e) {
			require.NotNil(t, l.reach.Process)
		}
		link := e.Links()[0]
		require.EqualValues(t, 2*n*size, link.BytesIn)
		require.EqualValues(t, n*size, link.BytesOut)
	}
}

func TestOffMeansTCP(t *testing.T) {
	for _, off := range []func(*core.Config){
		func(c *core.Config) { c.SameHost = false }, func(c *core.Config) { c.ForceTCP = true }, withoutPool, speakV1,
	} {
		_, e, memory, local, id := neighbours(t, 1<<20, off)
		completes(t, submit(t, e, ask(core.Read, local, id, memory)))
		require.Equal(t, memory, local)
		for _, l := range lanes(t, e) {
			require.Nil(t, l.reach.Process)
		}
	}
}

func TestAnEngineThatOffersNoSocketIsReachedOverTCP(t *testing.T) {
	target, e := engine(t), engine(t, onOneHost)
	memory, local := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
	tcptest.Fill(memory, 1)
	require.NoError(t, target.Register(sockio.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
	completes(t, submit(t, e, ask(core.Read, local, open(t, e, target.Name()), memory)))
	require.Equal(t, memory, local)
}

func TestAPeerWhoseSocketIsNotHereIsReachedOverTCP(t *testing.T) {
	memory, local := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(memory, 1)
	p := perform(t, 2, serveWell, memory)
	p.mu.Lock()
	p.shown.SameHostSocket = "kvferry-0123456789abcdef0123456789abcdef"
	p.mu.Unlock()
	e := engine(t, onOneHost)
	completes(t, submit(t, e, ask(core.Read, local, open(t, e, p.name), memory)))
	require.Equal(t, memory, local)
}

func TestMemoryThatWasTakenBackIsNotReadAnyMore(t *testing.T) {
	target, e, memory, local, id := neighbours(t, 64<<10, oneLane)
	other := tcptest.Mapped(t, 64<<10)
	require.NoError(t, target.Register(sockio.AddressOf(other), uint64(len(other)), "cpu:0", true))
	require.NoError(t, e.SyncSegments())
	for range 2 {
		completes(t, submit(t, e, ask(core.Read, local, id, memory)))
	}
	require.True(t, lanes(t, e)[0].fetches())

	require.NoError(t, target.Unregister(sockio.AddressOf(memory)))
	tcptest.Fill(memory, 9)
	failsOnly(t, submit(t, e, ask(core.Read, local, id, memory)), 0)
	completes(t, submit(t, e, ask(core.Read, local, id, other)))
	require.Equal(t, other, local)
}

func TestAReadThatCompletesWhileItsRegionIsTakenBackHasTheBytesOfBefore(t *testing.T) {
	target, e, memory, _, id := neighbours(t, 256<<10)
	const readers = 4
	var locals [readers][]byte
	for i := range locals {
		locals[i] = tcptest.Mapped(t, len(memory))
	}
	random := rand.New(rand.NewPCG(1, 2))
	completed := 0
	for i := range 100 {
		tcptest.Fill(memory, byte(i))
		before := bytes.Clone(memory)
		var reqs []core.Request
		for _, local := range locals {
			reqs = append(reqs, ask(core.Read, local, id, memory))
		}
		b := submit(t, e, reqs[0]) // teaches the lane its region, in some of the rounds
		taken := make(chan error)
		go func() {
			for range random.IntN(100) {
				runtime.Gosched()
			}
			err := target.Unregister(sockio.AddressOf(memory))
			clear(memory)
			taken <- err
		}()
		rest := submit(t, e, reqs[1:]...)
		wait(t, b)
		for task, state := range states(t, rest) {
			if state == core.Completed {
				completed++
				require.True(t, bytes.Equal(before, locals[1+task]), "round %d", i)
			}
		}
		require.NoError(t, <-taken)
		require.NoError(t, target.Register(sockio.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
		require.NoError(t, e.SyncSegments())
	}
	require.NotZero(t, completed)
}

func TestLocalMemoryThatIsNotThereFailsItsTaskAlone(t *testing.T) {
	_, e, memory, local, id := neighbours(t, 1<<20, oneLane)
	completes(t, submit(t, e, ask(core.Read, local, id, memory)))
	gone := tcptest.Mapped(t, 64<<10)
	tcptest.Unmap(t, gone)
	for _, op := range []core.Opcode{core.Read, core.Write} {
		b := submit(t, e, ask(op, local[:64<<10], id, memory[:64<<10]), ask(op, gone, id, memory[128<<10:192<<10]),
			ask(op, local[256<<10:320<<10], id, memory[256<<10:320<<10]))
		failsOnly(t, b, 1)
		require.ErrorIs(t, b.Err(), errBadLocal)
	}
}

func TestACloseOfTheTargetFailsItsReadersTransfers(t *testing.T) {
	target, e, memory, local, id := neighbours(t, 64<<10, fewRetries)
	completes(t, submit(t, e, ask(core.Read, local, id, memory)))
	require.NoError(t, target.Close())
	failsOnly(t, submit(t, e, ask(core.Read, local, id, memory)), 0)
}

func TestMoreRegionsThanALaneKnowsAreRead(t *testing.T) {
	target, e, _, local, id := neighbours(t, 4096, oneLane)
	memory := tcptest.Mapped(t, (samehost.MaxGrants+10)*4096)
	tcptest.Fill(memory, 3)
	for i := range samehost.MaxGrants + 10 {
		require.NoError(t, target.Register(sockio.AddressOf(memory)+uintptr(i*4096), 2048, "cpu:0", true))
	}
	require.NoError(t, e.SyncSegments())
	for i := range samehost.MaxGrants + 10 {
		completes(t, submit(t, e, ask(core.Read, local[:2048], id, memory[i*4096:i*4096+2048])))
		require.True(t, bytes.Equal(memory[i*4096:i*4096+2048], local[:2048]))
	}
}

func TestASessionCopiesNothingAfterThePermitWasRevoked(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 8192), tcptest.Mapped(t, 4096)
	tcptest.Fill(payload, 1)
	h := serve(t, targetOptions{}, memory)
	c, p := h.dialWithPermit()
	c.send(writeByAddress(sockio.AddressOf(memory), payload))
	c.expectStatus(wire.StatusOK)
	require.True(t, p.Revoke(tcptest.Patience, func() bool { return false }))
	_, err := c.conn.Write(writeByAddress(sockio.AddressOf(memory)+4096, payload))
	require.NoError(t, err)
	h.waitForSessions(0)
	require.Equal(t, make([]byte, 4096), memory[4096:])
}

func TestNothingIsCopiedForAPeerThatSentNoPermit(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	h := serve(t, targetOptions{}, memory)
	for _, greets := range []bool{false, true} {
		c := h.dialSocket()
		if greets {
			require.Equal(t, wire.Answer{}, c.greet(wire.Hello{Number: 1}))
		}
		c.send(writeByAddress(sockio.AddressOf(memory), payload))
		c.expectStatus(wire.StatusOutOfReach)
		c.send(writeV2(sockio.AddressOf(memory), []byte("abc")))
		c.expectStatus(wire.StatusOK)
	}
}

// A READ that completes after the target's engine began to close has only bytes that were there before.
func TestNoMemoryIsGrantedOnceTheEngineIsBeingClosed(t *testing.T) {
	target, e, memory, local, id := neighbours(t, 64<<10, oneLane, fewRetries)
	for range 2 {
		completes(t, submit(t, e, ask(core.Read, local, id, memory)))
	}
	l := lanes(t, e)[0]
	require.True(t, l.fetches())
	install, closed := make(chan struct{}), make(chan error)
	go func() {
		_, _ = target.Install("slow", func(*core.Engine) (core.Transport, error) {
			close(install)
			<-closed // Close waits for this
			return nil, core.ErrClosed
		})
	}()
	<-install
	done := make(chan error)
	go func() { done <- target.Close() }()
	require.Eventually(t, func() bool { return target.Memory().Epoch().Load() == 0 }, tcptest.Patience, time.Millisecond)
	for range 3 {
		wait(t, submit(t, e, ask(core.Read, local, id, memory)))
		require.False(t, l.fetches())
	}
	close(closed)
	require.NoError(t, <-done)
	require.Zero(t, target.Memory().Epoch().Load())
}
