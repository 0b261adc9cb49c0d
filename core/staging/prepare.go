package staging

import (
	"errors"
	"sync"
	"time"

	"kvferry/core/device"

	"go.uber.org/zap"
)

// A device is prepared once, so that its first jobs need not wait for what takes milliseconds:
//
//  1. PrepareSoon starts a job without moves in each direction. So the copiers' threads do the work, and Close ends it.
//  2. The job has the copier make its stream and an event, load the kernels that copy, and begin to measure the device, if that is
//     to be measured and was not yet.
//  3. What fails is logged once, and tried again by the first job.

// preparation is how far a device is prepared.
type preparation struct {
	begin sync.Once
	done  chan struct{} // closed at the end, also of what has failed

	mu      sync.Mutex
	left    int // jobs
	failure error
}

func newPreparation() preparation { return preparation{done: make(chan struct{})} }

// PrepareSoon has made what the first jobs would make: threads, streams, the kernels that copy, and the measurement of how blocks
// are copied fastest. It does so once, and does not wait. Close waits for what is being made then, and the rest is not made.
func (d *Device) PrepareSoon() {
	d.begin.Do(func() {
		blocks := d.copiers[:Direct] // direct copies are rare: see PrepareDirect
		d.left = len(blocks)
		for _, c := range blocks {
			c.start(&Job{prepares: true, Done: d.prepared})
		}
	})
}

// Prepare is PrepareSoon, and waits until all but the measurement is done, at most for the time limit of one job. CUDA loads kernels
// only when all streams of the application have come to rest. So this is called before one of them waits for a transfer. A device
// that cannot be prepared fails its first job.
func (d *Device) Prepare() {
	d.PrepareSoon()
	d.awaitPrepared(d.done)
}

// awaitPrepared waits until the channel is closed, at most for the time limit of one job.
func (d *Device) awaitPrepared(ready <-chan struct{}) {
	over := time.NewTimer(d.options.Timeout)
	defer over.Stop()
	select {
	case <-ready:
	case <-over.C:
	}
}

// PrepareDirect is Prepare for direct copies from devices, of which this one may be one. It opens the access to the memory of the
// others: a library may wait for streams of the application then.
func (d *Device) PrepareDirect(from []*Device) { d.awaitPrepared(d.prepareDirectSoon(from)) }

// prepareDirectSoon is PrepareDirect, and does not wait. The channel that it returns is closed when all are prepared, by whichever
// call.
func (d *Device) prepareDirectSoon(from []*Device) (ready <-chan struct{}) {
	d.peers.mu.Lock()
	defer d.peers.mu.Unlock()
	if others := d.unprepared(from); others != nil {
		done := make(chan struct{})
		d.peers.ready = done // jobs are done in their order, so the former ones are done by then
		d.copiers[Direct].start(&Job{prepares: true, peers: others[1:], Done: func(error) { close(done) }})
	}
	return d.peers.ready
}

// unprepared are this device, and those of others that it may have access to, if any of them is not prepared yet. They count as
// prepared from then on. The lock of the peers is held.
func (d *Device) unprepared(from []*Device) []*Device {
	peered, able := d.copiers[Direct].device.(device.Peered)
	others, news := []*Device{d}, !d.peers.prepared[d]
	for _, other := range from {
		if other != d && able && peered.MayAccess(other.copiers[Direct].device) {
			others = append(others, other)
			news = news || !d.peers.prepared[other]
		}
	}
	if !news {
		return nil
	}
	d.peers.prepared = map[*Device]bool{}
	for _, other := range others {
		d.peers.prepared[other] = true
	}
	return others
}

// prepared is called at the end of each job of the preparation.
func (d *Device) prepared(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failure == nil {
		d.failure = err
	}
	if d.left--; d.left > 0 {
		return
	}
	if d.failure != nil && !errors.Is(d.failure, ErrClosed) {
		d.options.Log.Warn("the device is not prepared: its first transfer tries that again", zap.String("device", d.name), zap.Error(d.failure))
	}
	close(d.done) // after the warning: Prepare returns then
}

// prepare does the work of the job, with the stream of the copier.
func (c *copier) prepare(j *Job) {
	c.loadKernels()
	c.calibrate()
	for _, peer := range j.peers { // a failure is that of the first copy, too
		_, _ = peer.copyTo(c.stream, nil)
	}
}

// isClosing reports whether close was called.
func (c *copier) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}
