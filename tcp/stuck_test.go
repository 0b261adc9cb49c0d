package tcp

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// returns fails the test when f does not return.
func returns(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		require.Fail(t, what+" does not return")
	}
}

func TestASessionThatWasEndedWhileItWasStuckServesNothingThatItHasRead(t *testing.T) {
	source, memory, other := withhold(t, 4096), mapped(t, 4096), mapped(t, 4096)
	h := serve(t, targetOptions{}, memory, other)
	c := h.dialNeighbour()
	c.send(writeByAddress(addressOf(memory), source.memory),
		writeV2(addressOf(memory), pattern(100, 1)), // what is to be fetched for the same place is fetched first
		writeV2(addressOf(other), pattern(100, 1)))
	source.waitForTouch()
	held, free := h.memory.regions[0], h.memory.regions[1]

	returns(t, "evict", func() { h.target.evict(held) })
	require.Equal(t, []string{fmt.Sprintf("a transfer of process %d", os.Getpid())}, h.target.holders(held))
	require.Empty(t, h.target.holders(free))
	require.Equal(t, []string{fmt.Sprintf("one from process %d, memory %v", os.Getpid(), held.Range)}, h.target.stuck())

	source.come()
	h.waitForSessions(0)
	require.Equal(t, make([]byte, 100), other[:100], "a request was served after the session had been ended")
	require.Empty(t, h.target.holders(held))
}
