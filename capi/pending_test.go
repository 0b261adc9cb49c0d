package main

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// wordFor makes a word that a pending call sets.
func wordFor[T any](map[*T]struct{}) *T { return new(T) }

func TestNothingTouchesTheWordOfACallerWhoseWaitHasEndedWhileAnotherAbandonsTheCall(t *testing.T) {
	over := make(chan struct{})
	defer close(over)
	for range 2000 {
		call := startPending(func() (uint64, error) { <-over; return 0, nil }, nil)
		p, err := pendingOf(call)
		require.NoError(t, err)
		word := wordFor(p.words)
		require.NoError(t, p.startWait(call, word))
		var abandoner sync.WaitGroup
		abandoner.Go(func() { require.NoError(t, p.abandon(call)) })
		for { // kvferry_call_wait, again and again, with no time to wait
			if _, err := pendingOf(call); err != nil {
				break
			}
			if _, ended, _ := p.endWait(call, word); ended || p.startWait(call, word) != nil {
				break
			}
		}
		*word = 0 // the stack is used for something else
		abandoner.Wait()
		require.Zero(t, *word)
	}
}

func TestTheResultOfACallHasOneOwner(t *testing.T) {
	for range 500 {
		var undone, taken atomic.Int32
		call := startPending(func() (uint64, error) { return 7, nil }, func(uint64) { undone.Add(1) })
		p, err := pendingOf(call)
		require.NoError(t, err)
		var callers sync.WaitGroup
		for i := range 4 {
			callers.Go(func() {
				if i == 3 {
					_ = p.abandon(call)
					return
				}
				word := wordFor(p.words)
				for p.startWait(call, word) == nil {
					if value, done, err := p.endWait(call, word); done && err == nil && value == 7 {
						taken.Add(1)
					}
				}
			})
		}
		callers.Wait()
		require.Eventually(t, func() bool { return undone.Load()+taken.Load() == 1 }, 20*time.Second, time.Millisecond)
	}
}
