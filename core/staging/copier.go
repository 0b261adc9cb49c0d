package staging

import (
	"fmt"
	"runtime"
	"sync"
	"time"

	"kvferry/core/device"

	"go.uber.org/zap"
)

// copier does the jobs of one direction, on a stream of its own, and makes the blocks for its pool.
//
//  1. start queues a job, and ask wants a block. The first of these launches two threads, bound to the device.
//  2. serve is the life of a thread: it does what there is to do, and sleeps when there is nothing. The two are alike. One
//     at a time issues jobs, and one at a time completes them, so that the device is kept busy while somebody waits
//     for it. When a job is under way alone, the thread that issued it completes it too: that saves waking the other.
//     So does the thread that issues many, where the device can be asked whether one is done.
//  3. issue queues the copies of a job, as planned, on the stream, and records an event behind them.
//  4. complete waits for the event of the oldest job in flight, and its Done is called.
//  5. Where copies could not all be queued, failed, or take too long, recover waits until the stream is at rest. Then one
//     job has failed. If it does not come to rest, all jobs on it have, and the next job has a new stream.
//  6. close lets the threads end when all is done. The last one frees what there is on the device.
type copier struct {
	name    string // of the device, and the direction
	device  device.Device
	timeout time.Duration
	log     *zap.Logger
	pool    *pool
	asks    bool // see device.Traits

	mu         sync.Mutex
	work       sync.Cond // there may be something to do for a thread that sleeps
	rest       sync.Cond // nobody issues
	queue      queue[*Job]
	flight     queue[issued]
	events     []device.Event // of no job
	asked      bool           // a block is wanted
	issuing    bool           // by one of the threads, as the next three
	completing bool
	making     bool // a block
	recovering bool // nobody issues meanwhile
	threads    int  // launched, and not ended
	binding    int  // of these, not bound yet
	serving    int  // of these, bound
	closing    bool
	ended      chan struct{} // closed when a closed copier has no threads any more
	err        error         // what could not be freed; valid then

	// What follows belongs to the thread that issues, or recovers.
	planner    planner
	stream     device.Stream // nil before the first job, and after one was given up
	gatherless time.Time     // when there was no memory for the gather block
	abandoned  []abandoned

	counters counters
}

func newCopier(d device.Device, name string, dir Direction, o Options) *copier {
	c := &copier{
		name: fmt.Sprintf("%s, %v", name, dir), device: d, timeout: o.Timeout, log: o.Log, ended: make(chan struct{}), asks: d.Traits().Asks,
		planner: newPlanner(dir, d.Traits(), o),
	}
	c.pool = newPool(c.name, o)
	c.pool.ask = c.ask
	c.work.L, c.rest.L = &c.mu, &c.mu
	return c
}

func (c *copier) start(j *Job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		go j.Done(closedError(c.name))
		return
	}
	c.queue.push(j)
	c.launch()
	if !c.issuing { // who issues looks for more
		c.work.Signal()
	}
}

func (c *copier) ask() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		c.asked = true
		c.launch()
		c.work.Signal()
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

// thread is a goroutine that is locked to an OS thread, which ends with it.
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
	c.leave()
}

// serve returns when the copier is closed and there is nothing more to do. last is true for the last thread.
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
			c.completeNext()
		case c.asked && !c.making:
			c.makeBlock()
		default:
			c.work.Wait()
		}
	}
	c.serving--
	c.work.Broadcast()
	return c.serving == 0
}

// finished reports whether the threads may end. The lock is held.
func (c *copier) finished() bool {
	busy := c.issuing || c.completing || c.making || c.binding > 0
	return c.closing && !busy && c.queue.len() == 0 && c.flight.len() == 0
}

// done reports whether the oldest job in flight is known to be done, or to have failed. It is called with the lock held,
// which it lets go while it asks the device: start takes it on behalf of transports. Nobody completes meanwhile, so the job
// stays the oldest.
func (c *copier) done() bool {
	if !c.asks || c.completing || c.flight.len() == 0 {
		return false
	}
	oldest := *c.flight.first()
	if oldest.err == nil && oldest.queued && !oldest.happened {
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
