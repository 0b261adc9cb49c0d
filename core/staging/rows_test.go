package staging_test

import (
	"testing"

	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// An older CANN has no batches. Runs of an odd length cannot be gathered.
func TestOddRunsOfAStridedMoveAreTheRowsOfAMatrixOnAnNPU(t *testing.T) {
	simtest.Use(t, simtest.OlderCANN)
	simtest.NoLeaks(t)
	n := newSimulated(t, 0, options())
	s := n.stretch(64 * kib)
	for dir := range staging.In + 1 {
		runs := hostmem.Strided{Base: s.addr + 10, Run: 99, Count: 1, Axes: [hostmem.MaxAxes]hostmem.Axis{{Count: 100, Stride: 600}}}
		lease, err := n.staging.Account(dir, staging.Initiator, nil).Lease(t.Context(), 64*kib)
		require.NoError(t, err)
		packed := memoryAt(lease.Addr, runs.Bytes())
		fill(packed)
		require.NoError(t, do(n.staging, dir, []staging.Move{{Block: lease.Addr, Length: runs.Bytes(), Runs: &runs}}))
		for i := range uint64(100) {
			onDevice, inLease := s.want[10+600*i:][:99], packed[99*i:][:99]
			if dir == staging.In {
				copy(onDevice, inLease)
			}
			require.Equal(t, onDevice, inLease, "%v, run %d", dir, i)
		}
		lease.Release()
		stats := n.staging.Stats(dir)
		require.EqualValues(t, 1, stats.Matrices)
		require.Zero(t, stats.Copies)
	}
	s.check(n)
	require.NoError(t, n.staging.Close())
}
