package tcp

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/clock"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

func TestLongCopiesHaveTheirTurnsWhileShortTransfersAreAbout(t *testing.T) {
	s := newTurnstile(2)
	s.expect()
	var inside, most atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if !s.enter() {
					t.Error("it let somebody pass while short transfers were about")
					return
				}
				for now := inside.Add(1); now > most.Load(); {
					most.Store(now)
				}
				runtime.Gosched()
				inside.Add(-1)
				s.leave()
			}
		})
	}
	all.Wait()
	require.LessOrEqual(t, most.Load(), int32(2))
	require.Positive(t, most.Load())
}

func TestACopyThatIsHeldUpHoldsNobodyElseUp(t *testing.T) {
	s := newTurnstile(1)
	s.expect()
	require.True(t, s.enter())
	require.False(t, s.enter())
	s.leave()
	require.True(t, s.enter())
}

func TestLongCopiesPassWhereNothingShortIsAbout(t *testing.T) {
	s := newTurnstile(1)
	require.False(t, s.enter(), "before the first short transfer")
	s.note(1)
	s.forget()
	require.False(t, s.enter(), "long after the last one")
}

func TestOnlyWhatIsShortIsNotedAsShort(t *testing.T) {
	s := newTurnstile(1)
	for _, bytes := range []uint64{0, bulkLength} {
		s.note(bytes)
		require.False(t, s.seen(), bytes)
	}
	for _, bytes := range []uint64{1, bulkLength - 1} {
		s.forget()
		s.note(bytes)
		require.True(t, s.seen(), bytes)
	}
}

// expect has short transfers be about for longer than any test takes.
func (s *turnstile) expect() { s.shorts.Store(int64(clock.Now() + time.Hour)) }

// forget has the last short transfer be long ago.
func (s *turnstile) forget() { s.shorts.Store(-int64(shortsTime)) }

// seen reports whether there was a short transfer since.
func (s *turnstile) seen() bool { return s.shorts.Load() >= 0 }

func TestASessionTellsOfShortRequests(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
	h := serve(t, targetOptions{}, memory)
	c := h.dialNeighbour()
	send := func(length int) {
		c.send(writeByAddress(sockio.AddressOf(memory), payload[:length]))
		c.expectStatus(wire.StatusOK)
	}
	copies.forget()
	send(4096)
	require.Eventually(t, copies.seen, tcptest.Patience, time.Microsecond)
	copies.forget()
	send(1 << 20)
	send(1 << 20) // the session waited for this one, so it is done with the other
	require.False(t, copies.seen())
}

func TestAnInitiatorTellsOfShortTransfers(t *testing.T) {
	_, e, memory, local, id := neighbours(t, 1<<20, oneLane)
	completes(t, submit(t, e, ask(core.Read, local, id, memory)))
	read := func(length int) bool {
		copies.forget()
		completes(t, submit(t, e, ask(core.Read, local[:length], id, memory[:length])))
		return copies.seen()
	}
	require.True(t, read(4096))
	require.False(t, read(1<<20))
}
