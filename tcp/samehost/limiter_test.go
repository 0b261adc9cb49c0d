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
