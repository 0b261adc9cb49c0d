package threads

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const limit = 20 * time.Second

func threads(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/task")
	require.NoError(t, err)
	return len(all)
}

// reserve is Reserve with this answer of the system, for one test.
func reserve(t *testing.T, p Probe) error {
	t.Helper()
	t.Cleanup(func() {
		probe = nil
		allowed.Store(0)
		require.Zero(t, inside.Load())
		require.Zero(t, waiting.Load())
	})
	return Reserve(p)
}

func TestTheThreadsAreThereBeforeTheyAreNeeded(t *testing.T) {
	var asked int
	require.NoError(t, reserve(t, func(n int) error { asked = n; return nil }))
	require.Equal(t, Bound(), asked)
	before := threads(t)
	require.GreaterOrEqual(t, before, Bound())

	var busy sync.WaitGroup
	var pipe [2]int
	require.NoError(t, syscall.Pipe(pipe[:]))
	for range calls { // blocked in the kernel, all at the same time
		busy.Go(func() {
			Enter()
			defer Leave()
			_, _ = syscall.Read(pipe[0], make([]byte, 1))
		})
	}
	require.Eventually(t, func() bool { return inside.Load() == calls }, limit, time.Millisecond)
	require.LessOrEqual(t, threads(t), before, "none of them has needed another thread")
	_, err := syscall.Write(pipe[1], make([]byte, calls))
	require.NoError(t, err)
	busy.Wait()
}

func TestWhatTheSystemRefusesIsAnErrorAndBoundsNothing(t *testing.T) {
	refused := errors.New("the pids limit is reached")
	require.ErrorIs(t, reserve(t, func(int) error { return refused }), refused)
	for range 2 * calls {
		Enter()
	}
	for range 2 * calls {
		Leave()
	}
	require.NoError(t, reserve(t, func(int) error { return nil }), "another time it may go")
}

func TestWhoComesWhenAllAreInWaitsForOneToLeave(t *testing.T) {
	require.NoError(t, reserve(t, func(n int) error {
		if n == 1 {
			return errors.New("not one more")
		}
		return nil
	}))
	for range calls {
		Enter()
	}
	const late = 100
	var entered, most atomic.Int64
	var all sync.WaitGroup
	for range late {
		all.Go(func() {
			Enter()
			entered.Add(1)
			for n := inside.Load(); ; {
				if old := most.Load(); n <= old || most.CompareAndSwap(old, n) {
					break
				}
			}
			Leave()
		})
	}
	require.Eventually(t, func() bool { return waiting.Load() == late }, limit, time.Millisecond)
	require.Zero(t, entered.Load())
	for range calls {
		Leave()
	}
	all.Wait()
	require.EqualValues(t, late, entered.Load())
	require.LessOrEqual(t, most.Load(), int64(calls))
}

func TestCallsThatNeverEndKeepNobodyOutWhereThereAreMoreThreads(t *testing.T) {
	require.NoError(t, reserve(t, func(int) error { return nil }))
	for range 3 * calls { // none leaves
		Enter()
	}
	require.GreaterOrEqual(t, allowed.Load(), int64(3*calls))
	for range 3 * calls {
		Leave()
	}
}
