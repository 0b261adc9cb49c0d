package staging_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"kvferry/core/staging"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// onKinds runs a test for a simulated NPU and a simulated GPU.
func onKinds(t *testing.T, test func(t *testing.T)) {
	for name, use := range map[string]func(testing.TB, string){"npu": simtest.Use, "cuda": simtest.UseCUDA} {
		t.Run(name, func(t *testing.T) {
			use(t, "")
			test(t)
		})
	}
}

// TestEveryCallMayFailWhileADeviceIsPrepared has each function fail, at its first and its middle use, while a device is prepared and
// measured. Nothing is leaked, and jobs are done all the same.
func TestEveryCallMayFailWhileADeviceIsPrepared(t *testing.T) {
	onKinds(t, func(t *testing.T) {
		var calls map[string]uint64
		t.Run("none", func(t *testing.T) { calls = preparedWithFault(t, "") })
		for function, uses := range calls {
			for _, nth := range slices.Compact([]uint64{1, (uses + 1) / 2}) {
				if uses > 0 {
					t.Run(fmt.Sprintf("%s %d of %d", function, nth, uses), func(t *testing.T) {
						preparedWithFault(t, fmt.Sprintf("%s:%d", function, nth))
					})
				}
			}
		}
	})
}

// preparedWithFault prepares a device, does jobs and closes it. It returns how often each function was called.
func preparedWithFault(t *testing.T, fault string) map[string]uint64 {
	simtest.NoLeaks(t)
	o := measuring()
	o.MeasureTime = time.Nanosecond // blocks of one length
	warnings := observed(&o)
	n := newSimulated(t, 0, o)
	tablesOf(t).Forget()
	t.Cleanup(tablesOf(t).Forget)
	s := n.stretch(256 * kib)
	simtest.ResetCounters(t)
	simtest.Faults(t, fault)
	n.staging.Prepare()
	for dir := range staging.In + 1 {
		require.Eventually(t, func() bool { return !n.staging.Measures(dir) }, time.Minute, time.Millisecond)
	}
	calls := simtest.TakeReport(t).Calls
	happened := simtest.TakeReport(t).Faults > 0
	simtest.Faults(t, "")
	random := rand.New(rand.NewPCG(1, 2))
	for range 4 {
		for dir := range staging.In + 1 {
			require.NoError(t, n.transfer(random, dir, s))
		}
	}
	s.check(n)
	closed := n.staging.Close()
	if !happened {
		require.NoError(t, closed)
		require.Zero(t, warnings.Len())
	}
	return calls
}
