package staging_test

import (
	"testing"

	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest/observer"
)

// newKernelOnly is a simulated GPU whose blocks are copied by a kernel, and what is logged of it.
func newKernelOnly(t *testing.T) (*simulated, *observer.ObservedLogs) {
	simtest.UseCUDA(t, "")
	simtest.NoLeaks(t)
	o := options()
	o.Copying = staging.AlwaysBy(device.Kernel)
	logs := observed(&o)
	return newSimulated(t, 0, o), logs
}

// A kernel that touched such memory would break the context of the whole application.
func TestBlocksThatAKernelCannotReachLeaveTheKernelToOtherJobs(t *testing.T) {
	n, logs := newKernelOnly(t)
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
	require.Error(t, move(freed))
	require.NoError(t, move(here))
	require.Equal(t, 1, logs.FilterMessageSnippet("that a kernel cannot reach").Len(), "once for all jobs")
	require.EqualValues(t, 2, n.staging.Stats(staging.Out).Kernels)
	require.NoError(t, n.staging.Close())
	simtest.ResetCounters(t) // of the use of freed memory
}

// closeTogether makes two allocations that lie less than 64 KiB apart, and not next to each other.
func (n *simulated) closeTogether(length int) (first, second *stretch) {
	last := n.stretch(length)
	for range 16 {
		next := n.stretch(length)
		first, second = last, next
		if next.addr < last.addr {
			first, second = next, last
		}
		if apart := second.addr - first.addr; apart > uintptr(length) && apart < 64*kib {
			return first, second
		}
		last = next
	}
	n.t.Fatal("the simulator has put no two allocations close together")
	return nil, nil
}

// A device's allocator may leave holes, in which a kernel must touch nothing.
func TestAKernelCopiesTheRunsOfOneMoveInTwoAllocations(t *testing.T) {
	n, logs := newKernelOnly(t)
	first, second := n.closeTogether(8 * kib)
	runs := hostmem.Strided{Base: first.addr + 256, Run: 100, Count: 2, Axes: [hostmem.MaxAxes]hostmem.Axis{
		{Count: 2, Stride: int64(second.addr - first.addr)}, {Count: 30, Stride: 256},
	}}
	for dir := range staging.In + 1 {
		l, err := n.staging.Account(dir, staging.Initiator, nil).Lease(t.Context(), 64*kib)
		require.NoError(t, err)
		packed := memoryAt(l.Addr, runs.Bytes())
		fill(packed)
		for range 2 {
			require.NoError(t, do(n.staging, dir, []staging.Move{{Block: l.Addr, Length: runs.Bytes(), Runs: &runs}}))
		}
		for i := range 60 {
			s := []*stretch{first, second}[i/30]
			onDevice, inLease := s.want[256*(i%30+1):][:100], packed[100*i:][:100]
			if dir == staging.In {
				copy(onDevice, inLease)
			}
			require.Equal(t, onDevice, inLease, "%v, run %d", dir, i)
		}
		l.Release()
		stats := n.staging.Stats(dir)
		require.EqualValues(t, 2, stats.Kernels, "one for each job")
		require.Zero(t, stats.Copies+stats.Batches)
	}
	first.check(n)
	second.check(n)
	require.Empty(t, logs.All())
	require.NoError(t, n.staging.Close())
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
