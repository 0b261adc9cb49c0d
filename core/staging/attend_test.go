package staging_test

import (
	"sync"
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/staging"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// With few processors threads wait as Go does it, and with many they look out and sleep in the kernel: see attend.go.
func TestCopiersWorkWithFewProcessorsAndWithMany(t *testing.T) {
	for name, many := range map[string]bool{"few": false, "many": true} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(staging.LetThreadsLinger(many))
			t.Run("bytes pass both ways", TestBytesPassBothWays)
			t.Run("many goroutines", TestJobsFromManyGoroutines)
			t.Run("order", TestJobsAreDoneInTheOrderOfTheirStarts)
			t.Run("a job is issued while another is waited for", TestAJobIsIssuedWhileTheOneBeforeIsWaitedFor)
			t.Run("a job is completed while another is issued", TestAJobIsCompletedWhileTheNextIsIssued)
			t.Run("done may call", TestDoneMayCallStaging)
			t.Run("close", TestCloseWaitsForTheJobsThatWereStarted)
			t.Run("simulated devices", TestRandomJobsOnSimulatedDevices)
			t.Run("a copy that fails", TestACopyThatFailsOnTheDeviceFailsItsJob)
			t.Run("a copy that hangs", TestAHangingCopyFailsItsJobInTimeAndIsNotWaitedForByClose)
			t.Run("jobs at any time", jobsAtAnyTime)
		})
	}
}

// jobsAtAnyTime starts jobs when the threads of a copier are in all states: at work, looking out, and asleep.
func jobsAtAnyTime(t *testing.T) {
	r := newRig(t, options(), nil)
	lease := r.lease(staging.Out, staging.Granule)
	memory := r.memory(64)
	moves := []staging.Move{{Device: addressOf(memory), Block: lease.Addr, Length: 64}}
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			r.staging.Expect(staging.Out)
			pause := time.NewTimer(time.Duration(i*7%1000) * time.Microsecond)
			<-pause.C
			assert.NoError(t, do(r.staging, staging.Out, moves))
		})
		if i%20 == 0 {
			all.Wait()
		}
	}
	all.Wait()
}

func TestAnErrorThatAThreadFindsWhileItLooksOutFailsTheJob(t *testing.T) {
	var f *faulty
	r := newRig(t, options(), func(d device.Device) device.Device {
		f = newFaulty(asking{d})
		return f
	})
	f.failWhen(func(call string, nth int) bool {
		notYet, later := call == "WaitInTime" && nth == 1, call == "Wait" && nth == 2
		return notYet || later
	})
	lease := r.lease(staging.Out, 64*kib)
	defer lease.Release()
	moves := r.lay(lease, r.memory(64*kib), 100)
	require.ErrorIs(t, do(r.staging, staging.Out, moves), errInjected)
	require.NoError(t, do(r.staging, staging.Out, moves))
}
