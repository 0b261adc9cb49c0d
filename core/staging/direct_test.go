package staging_test

import (
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/staging"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// The device refuses one copy of a job when another one is on a stream that does not come to rest. If the bytes passed through the
// host as well, that copy might overwrite them later.
func TestAJobThatIsRefusedBehindOneThatDoesNotEndIsNotRepeated(t *testing.T) {
	onKinds(t, func(t *testing.T) {
		simtest.NoLeaks(t)
		o := options()
		o.Timeout = 2 * time.Second
		near, far := newSimulated(t, 0, o), newSimulated(t, 1, o)
		to, own, theirs := near.stretch(64*kib).addr, near.stretch(4*kib).addr, far.stretch(64*kib).addr
		second := map[string]string{"npu": "aclrtMemcpyAsync:3", "cuda": "cuMemcpyPeerAsync:2"}[simtest.Runtime(t).Name()]
		simtest.Faults(t, "exec:1=hang,"+second)
		done := make(chan error, 1)
		start := func(from *staging.Device, moves ...staging.Move) {
			near.staging.StartFrom(from, &staging.Job{Moves: moves, Done: func(err error) { done <- err }})
		}
		start(near.staging, staging.Move{Device: to + 32*kib, Block: own, Length: 4 * kib})
		start(far.staging,
			staging.Move{Device: to, Block: theirs, Length: 4 * kib},
			staging.Move{Device: to + 8*kib, Block: theirs + 8*kib, Length: 4 * kib})
		require.ErrorContains(t, <-done, "not done within")
		err := <-done
		require.ErrorContains(t, err, "a copy may still be under way")
		require.False(t, staging.IsRefused(err), "%v", err)
		simtest.ReleaseHangs(t)
		simtest.Faults(t, "")
		require.NoError(t, near.staging.Close())
		require.NoError(t, far.staging.Close())
	})
}

// A stream of the application may wait for a transfer as soon as the call has returned.
func TestPreparingDirectCopiesIsWaitedForByEachCall(t *testing.T) {
	r, f := newFaultyRig(t, options())
	begins, released := make(chan struct{}), make(chan struct{})
	f.fail = func(call string, _ int) error {
		if call == "NewStream" {
			f.mu.Unlock()
			close(begins)
			<-released
			f.mu.Lock()
		}
		return nil
	}
	first := r.staging.PrepareDirectSoon(nil)
	<-begins
	second := r.staging.PrepareDirectSoon(nil)
	select {
	case <-second:
		t.Error("it is still being prepared")
	default:
	}
	close(released)
	<-first
	<-second
	r.staging.PrepareDirect(nil)
	require.Equal(t, 1, f.count("NewStream"))
}

// Each move costs the device a copy, and others wait behind the job. The way that is set is one of blocks.
func TestADirectJobOfSingleCopiesIsAShortOne(t *testing.T) {
	for way := range device.WayCount {
		o := options()
		o.Copying = staging.AlwaysBy(way)
		simtest.Use(t, "")
		npu, other := newSimulated(t, 0, o).staging, newSimulated(t, 1, o).staging
		require.EqualValues(t, 4096, npu.MostDirect(npu), way)
		require.EqualValues(t, 4096, npu.MostDirect(other), way)
		simtest.UseCUDA(t, "")
		gpu := newSimulated(t, 0, o).staging
		most := 4096
		if way != device.Single && way != device.Gather {
			most = 65536
		}
		require.EqualValues(t, most, gpu.MostDirect(gpu), way)
	}
}
