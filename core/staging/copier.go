package staging

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"kvferry/core/device"
	"kvferry/core/status"

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

// issued is a job on its way.
type issued struct {
	job    *Job
	event  device.Event // happens when the job's copies are done
	err    error        // it could not be issued, or not wholly
	queued bool         // something of it may be on the stream

	happened bool  // the event has, as it was seen when it was asked
	failed   error // or this was said of it
}

// abandoned is a stream that could not be given up, and what it may still touch.
type abandoned struct {
	stream device.Stream
	stuck  bool // its copies do not end; otherwise Close has failed
	events []device.Event
	gather uintptr
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

// issueNext is called with the lock held, which it lets go meanwhile. So are completeNext and makeBlock.
func (c *copier) issueNext() {
	if c.flight.len() > 0 && !c.completing && !c.asks {
		c.work.Signal() // there is work for the other, too
	}
	next := issued{job: c.queue.pop()}
	c.issuing = true
	c.mu.Unlock()
	err := status.Guard(func() error { return c.issue(&next) })
	c.mu.Lock()
	next.err = err
	c.flight.push(next)
	c.issuing = false
	c.rest.Signal()
}

// issue puts a job on the stream.
func (c *copier) issue(j *issued) (err error) {
	if c.stream == nil {
		if c.stream, err = c.newStream(); err != nil {
			return err
		}
	}
	if j.event, err = c.newEvent(); err != nil {
		return err
	}
	j.queued = true
	err = c.copy(j.job.Moves)
	if errors.Is(err, device.ErrNoBatches) {
		c.planner.batches = false
		err = c.copy(j.job.Moves)
	}
	if err != nil {
		return err
	}
	if err := c.stream.Record(j.event); err != nil {
		return fmt.Errorf("%s: recording an event: %w", c.name, err)
	}
	return nil
}

func (c *copier) newStream() (device.Stream, error) {
	stream, err := c.device.NewStream()
	if err != nil {
		return nil, fmt.Errorf("%s: making a stream: %w", c.name, err)
	}
	return stream, nil
}

// newEvent makes an event when there is none to be used again: there come to be as many as jobs were in flight at once.
func (c *copier) newEvent() (device.Event, error) {
	if e := c.oldEvent(); e != nil {
		return e, nil
	}
	e, err := c.device.NewEvent()
	if err != nil {
		return nil, fmt.Errorf("%s: making an event: %w", c.name, err)
	}
	return e, nil
}

func (c *copier) oldEvent() device.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.events)
	if n == 0 {
		return nil
	}
	e := c.events[n-1]
	c.events = c.events[:n-1]
	return e
}

func (c *copier) recycle(e device.Event) {
	if e != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.events = append(c.events, e)
	}
}

// copy queues copies that do the moves.
func (c *copier) copy(moves []Move) error {
	steps := c.planner.plan(moves)
	if c.planner.wanted && c.makeGather() {
		steps = c.planner.plan(moves)
	}
	for i := range steps {
		if err := c.call(&steps[i]); err != nil {
			return err
		}
	}
	c.counters.gathered.Add(uint64(c.planner.gathered))
	return nil
}

func (c *copier) call(s *step) error {
	if s.batch {
		if err := c.stream.CopyBatch(s.kind, s.copies); err != nil {
			return fmt.Errorf("%s: a batch of %d copies %v: %w", c.name, len(s.copies), s.kind, err)
		}
		c.counters.batches.Add(1)
		return nil
	}
	issued, err := c.stream.Copy(s.kind, s.copies)
	c.counters.copies[s.kind].Add(uint64(issued))
	if err != nil {
		failed := s.copies[min(issued, len(s.copies)-1)]
		return fmt.Errorf("%s: copying %d bytes %v, from %#x to %#x: %w", c.name, failed.Length, s.kind, failed.Src, failed.Dst, err)
	}
	return nil
}

// makeGather makes the gather block, or reports false: the device's memory may well be all in use.
func (c *copier) makeGather() bool {
	if !c.gatherless.IsZero() && time.Since(c.gatherless) < growAgain {
		return false
	}
	addr, err := c.device.Allocate(c.planner.capacity)
	if err != nil {
		if c.gatherless.IsZero() {
			c.log.Warn("no device memory for gathering: small moves are copied one by one", zap.String("device", c.name), zap.Error(err))
		}
		c.gatherless = time.Now()
		return false
	}
	c.planner.gather = addr
	return true
}

func (c *copier) completeNext() {
	next := c.flight.pop()
	c.completing = true
	c.mu.Unlock()
	err := next.err
	var others []failure
	if next.queued {
		others, err = c.complete(&next)
	}
	c.recycle(next.event)
	c.report(next.job, err)
	for _, f := range others {
		c.report(f.job, f.err)
	}
	c.mu.Lock()
	c.completing = false
}

// failure is what a job comes to that fails with another.
type failure struct {
	job *Job
	err error
}

func (c *copier) report(j *Job, err error) {
	if err != nil {
		c.counters.failed.Add(1)
		c.log.Warn("a staging job failed", zap.String("device", c.name), zap.Int("moves", len(j.Moves)), zap.Error(err))
	} else {
		c.counters.count(j)
	}
	j.Done(err)
}

// complete waits for the end of a job of which something is on the stream.
func (c *copier) complete(j *issued) (others []failure, err error) {
	if j.err != nil {
		return c.recover(j, j.err, c.timeout)
	}
	done, err := j.happened, j.failed
	if !done && err == nil {
		done, err = j.event.Wait(c.timeout)
	}
	switch {
	case err != nil:
		return c.recover(j, fmt.Errorf("%s: copies failed: %w", c.name, err), c.timeout)
	case !done: // the stream has had its time, and gets little more
		return c.recover(j, fmt.Errorf("%s: copies were not done within %v", c.name, c.timeout), c.timeout/8)
	}
	return nil, nil
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
