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

// reserve is Reserve for one test.
func reserve(t *testing.T, way int, p Probe) (calls int) {
	t.Helper()
	t.Cleanup(func() {
		probe = nil
		allowed.Store(0)
		require.Zero(t, inside.Load())
		require.Zero(t, waiting.Load())
	})
	Reserve(way, p)
	return ways[way].calls
}

func willing(int) error { return nil }

func TestTheThreadsAreThereBeforeTheyAreNeeded(t *testing.T) {
	wanted := Wanted(0)
	calls := reserve(t, 0, willing)
	before := threads(t)
	require.GreaterOrEqual(t, before, wanted)

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
	require.Eventually(t, func() bool { return inside.Load() == int64(calls) }, limit, time.Millisecond)
	require.LessOrEqual(t, threads(t), before, "none of them has needed another thread")
	_, err := syscall.Write(pipe[1], make([]byte, calls))
	require.NoError(t, err)
	busy.Wait()
}

func TestEachWayToReserveThreadsTakesFewerAndLetsFewerCallsIn(t *testing.T) {
	for way := 1; way < len(ways); way++ {
		require.Less(t, Wanted(way), Wanted(way-1))
		require.Less(t, ways[way].calls, ways[way-1].calls)
	}
	require.Zero(t, Wanted(len(ways)))
	calls := reserve(t, len(ways)-1, willing)
	require.EqualValues(t, calls, allowed.Load())
	require.Zero(t, Wanted(0), "they are reserved")
}

func TestNothingIsBoundedBeforeThreadsAreReserved(t *testing.T) {
	for range 100 {
		Enter()
	}
	for range 100 {
		Leave()
	}
}

func TestWhoComesWhenAllAreInWaitsForOneToLeave(t *testing.T) {
	calls := reserve(t, 0, func(int) error { return errors.New("not one more") })
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
	calls := reserve(t, 0, willing)
	for range 3 * calls { // none leaves
		Enter()
	}
	require.GreaterOrEqual(t, allowed.Load(), int64(3*calls))
	for range 3 * calls {
		Leave()
	}
}
