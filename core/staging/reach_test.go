package staging_test

import (
	"testing"

	"kvferry/core/device"
	"kvferry/core/staging"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// A kernel that touched such memory would break the context of the whole application.
func TestBlocksThatAKernelCannotReachLeaveTheKernelToOtherJobs(t *testing.T) {
	simtest.UseCUDA(t, "")
	simtest.NoLeaks(t)
	o := options()
	o.Copying = staging.AlwaysBy(device.Kernel)
	n := newSimulated(t, 0, o)
	here := n.stretch(64 * kib).addr
	freed := n.memory.Alloc(64 * kib)
	n.memory.Free(freed)
	move := func(from uintptr) error {
		l, err := n.staging.Account(staging.Out, staging.Initiator, nil).Lease(t.Context(), 64*kib)
		require.NoError(t, err)
		defer l.Release()
		return do(n.staging, staging.Out, []staging.Move{
			{Device: from, Block: l.Addr, Length: 4 * kib}, {Device: from + 8*kib, Block: l.Addr + 8*kib, Length: 4 * kib},
		})
	}
	require.NoError(t, move(here))
	require.Error(t, move(freed))
	require.NoError(t, move(here))
	require.EqualValues(t, 2, n.staging.Stats(staging.Out).Kernels)
	require.NoError(t, n.staging.Close())
	simtest.ResetCounters(t) // of the use of freed memory
}

// An older driver has no batches, which are the next way after the kernel.
func TestBlocksThatAKernelCannotReachAreCopiedWithAnOlderDriver(t *testing.T) {
	simtest.UseCUDA(t, simtest.OlderCUDA)
	simtest.NoLeaks(t)
	n := newSimulated(t, 0, options())
	defer func() { require.NoError(t, n.staging.Close()) }()
	for dir := range staging.In + 1 {
		for range 2 {
			job := n.prepare(dir, 4096, 4, 1)
			simtest.Faults(t, "cuPointerGetAttributes:1=1")
			job()
			simtest.Faults(t, "")
		}
		n.blocks(dir, 4096, 4)
		require.EqualValues(t, 1, n.staging.Stats(dir).Kernels)
	}
}
