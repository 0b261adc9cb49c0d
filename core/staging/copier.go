package staging

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/device"

	"go.uber.org/zap"
)

// copier does the jobs of one direction, on a stream of its own, and makes the blocks for its pool.
//
//  1. start queues a job, and ask asks for a block. The first of these calls launches two threads, bound to the device.
//  2. serve is the loop of a thread. Both threads run the same loop. One at a time issues jobs, and one at a time completes them,
//     so that the device gets new copies while a thread waits for it. If only one job is under way, the thread that has issued
//     it also completes it: the other thread need not be woken. The same holds for several jobs, if the device can be asked
//     whether one is done. A thread that expects something soon looks out for it (attend.go), and sleeps otherwise (sleep.go).
//  3. issue queues the copies of a job on the stream, as planned, and records an event behind them (issue.go).
//  4. complete waits for the event of the oldest job in flight, and calls its Done (complete.go).
//  5. If copies could not all be queued, fail, or take too long, recover waits until the stream is at rest. Then this job has
//     failed. If the stream does not come to rest, all jobs on it have failed, and the next job gets a new stream (recover.go).
//  6. close lets the threads end when all jobs are done. The last one releases everything on the device (close.go).
type copier struct {
	name    string // of the device, and the direction
	device  device.Device
	timeout time.Duration
	// For measuring the device; 0 is calibrationTime.
	measureTime time.Duration
	log         *zap.Logger
	pool        *pool
	asks        bool // see device.Traits

	mu      sync.Mutex
	work    sleepers  // one may have something to do
	rest    sync.Cond // no thread issues a job
	queue   queue[*Job]
	flight  queue[issued]
	events  []device.Event // unused ones
	started atomic.Uint64  // jobs; changed under the lock
	attention
	asked      bool // the pool has asked for a block
	issuing    bool // a thread issues a job
	completing bool // a thread completes a job
	making     bool // a thread makes a block
	// A thread of its own measures the device. It is none of threads.
	calibrating bool
	awaiting    bool // so does a thread that waits for late copies; under the lock
	leftover    leftover
	recovering  bool // a thread recovers the stream: no job is issued
	threads     int  // launched, and not ended
	binding     int  // threads that are not bound yet
	serving     int  // threads that are bound
	closing     bool
	stopping    chan struct{} // closed with closing
	ended       chan struct{} // closed when a closed copier has no threads any more
	err         error         // what could not be freed; set before ended is closed

	// Used by the thread that issues a job, or recovers the stream.
	planner    planner
	stream     device.Stream // nil before the first job, and after one was given up
	gatherless time.Time     // when the gather block could not be allocated
	landing    int           // of the latest job of which a copy was refused: see refusal
	outOfReach bool          // it was logged that there are blocks that a kernel cannot reach
	abandoned  []abandoned
	late       *lateCopies    // of the device
	tables     *device.Tables // where the device's table is kept; nil if none is to be used

	counters counters
}

func newCopier(d device.Device, name string, dir Direction, o Options) *copier {
	c := &copier{
		name: fmt.Sprintf("%s, %v", name, dir), device: d, timeout: o.Timeout, measureTime: o.MeasureTime, log: o.Log, stopping: make(chan struct{}), ended: make(chan struct{}), asks: d.Traits().Asks,
		attention: newAttention(),
		planner:   newPlanner(dir, d.Traits(), o),
	}
	c.pool = newPool(c.name, o)
	c.pool.ask = c.ask
	c.rest.L = &c.mu
	c.work = sleepers{lock: &c.mu, cond: sync.Cond{L: &c.mu}, direct: c.lingers}
	if timer, able := d.(device.Timer); able && dir != Direct && o.Copying == Measured && o.GatherBelow > 0 {
		c.tables = timer.Tables()
	}
	if way, fixed := o.Copying.Fixed(); fixed && dir != Direct && !d.Traits().Ways.Has(way) {
		c.log.Warn("the device cannot copy blocks in the way that is set",
			zap.String("device", c.name), zap.Stringer("set", way), zap.Stringer("can", d.Traits().Ways))
	}
	return c
}

func (c *copier) start(j *Job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		go func() { callAll(j.end(closedError(c.name), nil)) }()
		return
	}
	c.queue.push(j)
	c.started.Add(1)
	c.launch()
	if !c.issuing && c.looking == 0 { // a thread that issues, or looks out, finds further jobs itself
		c.work.wakeOne()
	}
}

func (c *copier) ask() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		c.asked = true
		c.launch()
		c.work.wakeOne()
	}
}

// launch starts the threads, if there are none. The lock is held.
func (c *copier) launch() {
	if c.threads > 0 {
		return
	}
	c.threads, c.binding = 2, 2
	for range c.threads {
		go c.thread()
	}
}

// thread runs on an OS thread of its own, which ends with it.
func (c *copier) thread() {
	runtime.LockOSThread()
	if err := c.device.Bind(); err != nil {
		c.unbound(fmt.Errorf("%s: binding a thread to the device: %w", c.name, err))
	} else {
		if last := c.serve(); last {
			c.free()
		}
		c.failedTo("unbind a thread", c.device.Unbind())
	}
	c.threadEnded()
}

// serve returns when the copier is closed and all jobs are done. last is true for the last thread.
func (c *copier) serve() (last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.binding--
	c.serving++
	for !c.finished() {
		switch {
		case c.done():
			c.completeNext()
		case c.queue.len() > 0 && !c.issuing && !c.recovering:
			c.issueNext()
		case c.flight.len() > 0 && !c.completing:
			if !c.watch() {
				c.completeNext()
			}
		case c.asked && !c.making:
			c.makeBlock()
		default:
			c.linger()
		}
	}
	c.serving--
	c.work.wakeAll()
	return c.serving == 0
}

// finished reports whether the threads may end. The lock is held.
func (c *copier) finished() bool {
	busy := c.issuing || c.completing || c.making || c.binding > 0
	return c.closing && !busy && c.queue.len() == 0 && c.flight.len() == 0
}

// done reports whether the oldest job in flight is known to be done, or to have failed. It is called with the lock held, and
// releases it while it asks the device, since transports that call start wait for the lock. No job is completed meanwhile, so the
// job stays the oldest.
func (c *copier) done() bool {
	if !c.asks || c.completing || c.flight.len() == 0 {
		return false
	}
	oldest := *c.flight.first()
	if oldest.err == nil && oldest.queued && !oldest.happened && oldest.failed == nil {
		c.completing = true
		c.mu.Unlock()
		oldest.happened, oldest.failed = oldest.event.Wait(0)
		c.mu.Lock()
		c.completing = false
		*c.flight.first() = oldest
	}
	return oldest.err != nil || !oldest.queued || oldest.happened || oldest.failed != nil
}

// makeBlock makes a block for the pool.
func (c *copier) makeBlock() {
	c.asked, c.making = false, true
	c.mu.Unlock()
	addr, err := c.device.AllocatePinned(c.pool.blockSize)
	if err != nil {
		err = fmt.Errorf("%s: allocating %d bytes of page-locked memory: %w", c.name, c.pool.blockSize, err)
	}
	c.pool.grown(addr, err)
	c.mu.Lock()
	c.making = false
}
