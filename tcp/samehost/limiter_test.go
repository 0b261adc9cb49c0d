package samehost

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core/clock"

	"github.com/stretchr/testify/require"
)

func TestLongCopiesAreLimitedWhileShortTransfersAreExpected(t *testing.T) {
	l := NewCopyLimiter(2, nil)
	l.expect()
	var inside, most atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if !l.Acquire() {
					t.Error("it let a goroutine pass while short transfers were expected")
					return
				}
				for now := inside.Add(1); now > most.Load(); {
					most.Store(now)
				}
				runtime.Gosched()
				inside.Add(-1)
				l.Release()
			}
		})
	}
	all.Wait()
	require.LessOrEqual(t, most.Load(), int32(2))
	require.Positive(t, most.Load())
}

func TestACopyThatIsHeldUpHoldsNobodyElseUp(t *testing.T) {
	l := NewCopyLimiter(1, nil)
	l.expect()
	require.True(t, l.Acquire())
	require.False(t, l.Acquire())
	l.Release()
	require.True(t, l.Acquire())
}

func TestPlacesGoToThoseThatWaitLongestAndNobodyWaitsForACopyThatIsKnownToBeHeldUp(t *testing.T) {
	l := NewCopyLimiter(1, nil)
	isOver := func(turn chan struct{}) bool {
		select {
		case <-turn:
			return true
		default:
			return false
		}
	}
	_, has := l.queue()
	require.True(t, has)
	var turns [3]chan struct{}
	for i := range turns {
		turns[i], has = l.queue()
		require.NotNil(t, turns[i])
		require.False(t, has)
	}
	require.False(t, l.leave(turns[1]))
	turn, has := l.queue()
	require.Nil(t, turn)
	require.False(t, has, "it would wait for the same copy")

	l.Release()
	require.True(t, isOver(turns[0]))
	require.False(t, isOver(turns[2]))
	require.True(t, l.leave(turns[0]), "its time was over just now")
	last, _ := l.queue()
	require.NotNil(t, last, "the copy has ended")
	l.Release()
	require.True(t, isOver(turns[2]))
	require.False(t, isOver(last))
	l.Release()
	require.True(t, isOver(last))
	l.Release()
	_, has = l.queue()
	require.True(t, has)
}

func TestALongQueueIsNotTakenForACopyThatIsHeldUp(t *testing.T) {
	l := NewCopyLimiter(1, nil)
	l.expect()
	seen := l.Released()
	require.True(t, l.Acquire())
	require.False(t, l.moves(&seen), "the copy has not ended")
	l.Release()
	require.True(t, l.moves(&seen))
	require.False(t, l.moves(&seen))
}

func TestLongCopiesAreNotLimitedWhileNoShortTransferIsExpected(t *testing.T) {
	l := NewCopyLimiter(1, nil)
	require.False(t, l.Acquire(), "before the first short transfer")
	l.Note(1)
	l.forget()
	require.False(t, l.Acquire(), "long after the last one")
}

func TestOnlyWhatIsShortIsNotedAsShort(t *testing.T) {
	l := NewCopyLimiter(1, nil)
	for _, bytes := range []uint64{0, longLength} {
		l.Note(bytes)
		require.False(t, l.seen(), bytes)
	}
	for _, bytes := range []uint64{1, longLength - 1} {
		l.forget()
		l.Note(bytes)
		require.True(t, l.seen(), bytes)
	}
}

// expect has short transfers be expected for longer than any test takes.
func (l *CopyLimiter) expect() { l.shorts.Store(int64(clock.Now() + time.Hour)) }

// forget has the last short transfer be long ago.
func (l *CopyLimiter) forget() { l.shorts.Store(-int64(shortsTime)) }

// seen reports whether there was a short transfer since.
func (l *CopyLimiter) seen() bool { return l.shorts.Load() >= 0 }
