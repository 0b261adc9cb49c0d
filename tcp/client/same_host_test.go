package client

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/samehost"

	"github.com/stretchr/testify/require"
)

// lanes are those to the only peer of an engine.
func lanes(t testing.TB, e *core.Engine) []*lane {
	t.Helper()
	p := onlyPeer(t, e)
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*lane
	for _, c := range p.listed().all {
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
	_, known := l.peerMemory.Proof()
	return l.peerMemory.Reachable() && known
}

func TestEnginesOnOneHostMoveBlocksInBothDirections(t *testing.T) {
	for _, size := range []int{1, 100, minByAddress, 64 << 10, 3<<20 + 1} {
		const n = 20
		_, e, memory, local, id := sameHost(t, n*(size+1))
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Scattered(core.Read, local, id, memory, n, size)...))
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Scattered(core.Read, local, id, memory, n, size)...))
		for i := range n {
			at := i * (size + 1)
			require.True(t, bytes.Equal(memory[at:at+size], local[at:at+size]), "block %d of %d bytes", i, size)
		}
		tcptest.Fill(local, 2)
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Scattered(core.Write, local, id, memory, n, size)...))
		for i := range n {
			at := i * (size + 1)
			require.True(t, bytes.Equal(memory[at:at+size], local[at:at+size]), "block %d of %d bytes", i, size)
		}
		for _, l := range lanes(t, e) { // also of those that are still being connected
			require.Eventually(t, func() bool {
				l.mu.Lock()
				defer l.mu.Unlock()
				return l.peerMemory.Process != nil
			}, tcptest.Patience, time.Millisecond)
		}
		link := e.Links()[0]
		require.EqualValues(t, 2*n*size, link.BytesIn)
		require.EqualValues(t, n*size, link.BytesOut)
	}
}

func TestOffMeansTCP(t *testing.T) {
	for _, off := range []func(*core.Config){
		func(c *core.Config) { c.SameHost = false }, func(c *core.Config) { c.ForceTCP = true }, tcptest.WithoutPool, tcptest.SpeakV1,
	} {
		_, e, memory, local, id := sameHost(t, 1<<20, off)
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, memory)))
		require.Equal(t, memory, local)
		for _, l := range lanes(t, e) {
			require.Nil(t, l.peerMemory.Process)
		}
	}
}

func TestAnEngineThatOffersNoSocketIsReachedOverTCP(t *testing.T) {
	target, e := newEngine(t), newEngine(t, tcptest.OnOneHost)
	memory, local := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
	tcptest.Fill(memory, 1)
	require.NoError(t, target.Register(hostmem.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, tcptest.OpenSegment(t, e, target.Name()), memory)))
	require.Equal(t, memory, local)
}

func TestAPeerWhoseSocketIsNotHereIsReachedOverTCP(t *testing.T) {
	memory, local := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(memory, 1)
	p := tcptest.Perform(t, 2, tcptest.ServeWell, memory)
	p.Mu.Lock()
	p.Shown.SameHostSocket = "kvferry-0123456789abcdef0123456789abcdef"
	p.Mu.Unlock()
	e := newEngine(t, tcptest.OnOneHost)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, tcptest.OpenSegment(t, e, p.Name), memory)))
	require.Equal(t, memory, local)
}

func TestMemoryThatWasTakenBackIsNotReadAnyMore(t *testing.T) {
	target, e, memory, local, id := sameHost(t, 64<<10, tcptest.OneLane)
	other := tcptest.Mapped(t, 64<<10)
	require.NoError(t, target.Register(hostmem.AddressOf(other), uint64(len(other)), "cpu:0", true))
	require.NoError(t, e.SyncSegments())
	for range 2 {
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, memory)))
	}
	require.True(t, lanes(t, e)[0].fetches())

	require.NoError(t, target.Unregister(hostmem.AddressOf(memory)))
	tcptest.Fill(memory, 9)
	tcptest.FailsOnly(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, memory)), 0)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, other)))
	require.Equal(t, other, local)
}

func TestAReadThatCompletesWhileItsRegionIsTakenBackHasTheBytesOfBefore(t *testing.T) {
	target, e, memory, _, id := sameHost(t, 256<<10)
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
			reqs = append(reqs, tcptest.Ask(core.Read, local, id, memory))
		}
		b := tcptest.Submit(t, e, reqs[0]) // teaches the lane its region, in some of the rounds
		taken := make(chan error)
		go func() {
			for range random.IntN(100) {
				runtime.Gosched()
			}
			err := target.Unregister(hostmem.AddressOf(memory))
			clear(memory)
			taken <- err
		}()
		rest := tcptest.Submit(t, e, reqs[1:]...)
		tcptest.Wait(t, b)
		for task, state := range tcptest.States(t, rest) {
			if state == core.Completed {
				completed++
				require.True(t, bytes.Equal(before, locals[1+task]), "round %d", i)
			}
		}
		require.NoError(t, <-taken)
		require.NoError(t, target.Register(hostmem.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
		require.NoError(t, e.SyncSegments())
	}
	require.NotZero(t, completed)
}

func TestLocalMemoryThatIsNotThereFailsItsTaskAlone(t *testing.T) {
	_, e, memory, local, id := sameHost(t, 1<<20, tcptest.OneLane)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, memory)))
	gone := tcptest.Mapped(t, 64<<10)
	tcptest.Unmap(t, gone)
	for _, op := range []core.Opcode{core.Read, core.Write} {
		b := tcptest.Submit(t, e, tcptest.Ask(op, local[:64<<10], id, memory[:64<<10]), tcptest.Ask(op, gone, id, memory[128<<10:192<<10]),
			tcptest.Ask(op, local[256<<10:320<<10], id, memory[256<<10:320<<10]))
		tcptest.FailsOnly(t, b, 1)
		require.ErrorIs(t, b.Err(), errBadLocal)
	}
}

func TestACloseOfTheTargetFailsItsReadersTransfers(t *testing.T) {
	target, e, memory, local, id := sameHost(t, 64<<10, tcptest.FewRetries)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, memory)))
	require.NoError(t, target.Close())
	tcptest.FailsOnly(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, memory)), 0)
}

func TestMoreRegionsThanALaneKnowsAreRead(t *testing.T) {
	target, e, _, local, id := sameHost(t, 4096, tcptest.OneLane)
	memory := tcptest.Mapped(t, (samehost.MaxGrants+10)*4096)
	tcptest.Fill(memory, 3)
	for i := range samehost.MaxGrants + 10 {
		require.NoError(t, target.Register(hostmem.AddressOf(memory)+uintptr(i*4096), 2048, "cpu:0", true))
	}
	require.NoError(t, e.SyncSegments())
	for i := range samehost.MaxGrants + 10 {
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local[:2048], id, memory[i*4096:i*4096+2048])))
		require.True(t, bytes.Equal(memory[i*4096:i*4096+2048], local[:2048]))
	}
}

// A READ that completes after the target's engine began to close has only bytes that were there before.
func TestNoMemoryIsGrantedOnceTheEngineIsBeingClosed(t *testing.T) {
	target, e, memory, local, id := sameHost(t, 64<<10, tcptest.OneLane, tcptest.FewRetries)
	for range 2 {
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, memory)))
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
		tcptest.Wait(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, local, id, memory)))
		require.False(t, l.fetches())
	}
	close(closed)
	require.NoError(t, <-done)
	require.Zero(t, target.Memory().Epoch().Load())
}
