package tcp

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core"

	"github.com/stretchr/testify/require"
)

func TestLongCopiesHaveTheirTurnsWhileShortTransfersAreAbout(t *testing.T) {
	s := newTurnstile(2)
	s.noteShort()
	var inside, most atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				s.noteShort()
				if !s.enter() {
					t.Error("it let somebody pass right after a short transfer")
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
	s.noteShort()
	require.True(t, s.enter())
	s.noteShort()
	require.False(t, s.enter())
	s.leave()
	s.noteShort()
	require.True(t, s.enter())
}

func TestLongCopiesPassWhereNothingShortIsAbout(t *testing.T) {
	s := newTurnstile(1)
	require.False(t, s.enter(), "before the first short transfer")
	s.noteShort()
	s.forget()
	require.False(t, s.enter(), "long after the last one")
}

// forget has the last short transfer be long ago.
func (s *turnstile) forget() { s.shorts.Store(int64(time.Since(began)) - int64(shortsTime)) }

// seen reports whether there was a short transfer lately.
func (s *turnstile) seen() bool {
	in := s.enter()
	if in {
		s.leave()
	}
	return in
}

func TestASessionTellsOfShortRequests(t *testing.T) {
	memory, payload := mapped(t, 1<<20), mapped(t, 1<<20)
	h := serve(t, targetOptions{}, memory)
	c := h.dialNeighbour()
	send := func(length int) {
		c.send(writeByAddress(addressOf(memory), payload[:length]))
		c.expectStatus(statusOK)
	}
	copies.forget()
	send(4096)
	require.Eventually(t, copies.seen, patience, time.Microsecond)
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
