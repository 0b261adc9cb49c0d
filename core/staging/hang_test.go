package staging_test

import (
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/staging"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// asking is a device that can be asked at any time whether a copy is done, as GPUs can.
type asking struct{ device.Device }

func (d asking) Traits() device.Traits {
	traits := d.Device.Traits()
	traits.Asks = true
	return traits
}

// TestACallOfTheDeviceThatHangsHoldsUpNobodyElse has each call hang in turn. Transports start jobs, lease blocks and give
// them back under locks of their own: none of that may wait for the device, and Close only as long as it is told to.
func TestACallOfTheDeviceThatHangsHoldsUpNobodyElse(t *testing.T) {
	for _, call := range []string{"Bind", "AllocatePinned", "NewStream", "NewEvent", "Copy", "Record", "Wait", "Free"} {
		t.Run(call, func(t *testing.T) {
			var f *faulty
			r := newRig(t, options(), func(d device.Device) device.Device {
				f = newFaulty(asking{d})
				return f
			})
			hangs, released := make(chan struct{}, 100), make(chan struct{})
			f.fail = func(called string, _ int) error {
				if called == call {
					f.mu.Unlock()
					hangs <- struct{}{}
					<-released
					f.mu.Lock()
				}
				return nil
			}
			account := r.staging.Account(staging.Out, staging.Target, func() {})
			memory, done := r.memory(64*kib), make(chan error, 2)
			var moves []staging.Move
			if call == "Bind" || call == "AllocatePinned" {
				lease, err := account.TryLease(64 * kib)
				require.NoError(t, err)
				require.Nil(t, lease)
			} else {
				lease := r.lease(staging.Out, 64*kib)
				defer lease.Release()
				moves = r.lay(lease, memory, 100, 200, 65)
			}
			job := func() *staging.Job { return &staging.Job{Moves: moves, Done: func(err error) { done <- err }} }
			if call == "Free" {
				require.NoError(t, do(r.staging, staging.Out, moves))
				go r.staging.Close()
			} else {
				r.staging.Start(staging.Out, job())
			}
			<-hangs

			returned := make(chan struct{})
			go func() {
				defer close(returned)
				if lease, _ := account.TryLease(64 * kib); lease != nil {
					lease.Release()
				}
				r.staging.Start(staging.Out, job())
				account.Close()
				ended, _ := r.staging.CloseWithin(time.Millisecond)
				assert.False(t, ended)
			}()
			within(t, returned, "who uses staging waits for the device")
			close(released)
			require.NoError(t, r.staging.Close())
		})
	}
}

// A device on which a copy does not end may not answer either. It takes copies to other memory all the same.
func TestAnAnswerAboutLateCopiesThatDoesNotComeHoldsUpNoCopy(t *testing.T) {
	o := options()
	o.Timeout = 100 * time.Millisecond
	r, f := newFaultyRig(t, o)
	hangs, released := make(chan struct{}, 1), make(chan struct{})
	f.fail = func(call string, nth int) error {
		switch {
		case nth == 1 && (call == "WaitInTime" || call == "DrainInTime"):
			return errInjected
		case nth == 2 && call == "Wait": // the first one is for the job
			f.mu.Unlock()
			hangs <- struct{}{}
			<-released
			f.mu.Lock()
		}
		return nil
	}
	memory := r.memory(64 * kib)
	first, second := r.lease(staging.In, 64*kib), r.lease(staging.In, 64*kib)
	defer first.Release()
	defer second.Release()
	require.ErrorContains(t, do(r.staging, staging.In, r.lay(first, memory, 100, 200)), "may still be under way")
	<-hangs

	done := make(chan struct{})
	go func() {
		defer close(done)
		assert.NoError(t, do(r.staging, staging.In, r.lay(second, memory[32*kib:], 100, 200)))
	}()
	within(t, done, "a copy waits for what the device answers about another one")
	close(released)
}

func TestLeasesThatAreOutstandingAreToldWhenLeasingEnds(t *testing.T) {
	r := newRig(t, options(), nil)
	lease := r.lease(staging.In, 2*staging.Granule)
	waiting := r.staging.Account(staging.In, staging.Target, func() {})
	require.EqualValues(t, 2*staging.Granule, r.staging.EndLeasing())
	_, err := waiting.TryLease(1)
	require.ErrorIs(t, err, staging.ErrClosed)
	lease.Release()
	require.Zero(t, r.staging.EndLeasing())
}
