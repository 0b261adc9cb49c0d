package staging

import (
	"errors"
	"fmt"
	"time"

	"kvferry/core/device"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// Step 3 of the way of a job: its copies are queued on the stream. See copier.

// issued is a job that is under way.
type issued struct {
	job      *Job
	begun    time.Time
	event    device.Event // happens when the job's copies are done
	err      error        // why some of its copies could not be queued
	queued   bool         // some of its copies may be on the stream
	recorded bool         // so is the event, behind them

	// What done was told by the device.
	happened bool  // the event has happened
	failed   error // the event has failed
}

// issueNext is called with the lock held, and releases it meanwhile. So are completeNext and makeBlock.
func (c *copier) issueNext() {
	if c.flight.len() > 0 && !c.completing && !c.asks {
		c.work.wakeOne() // the other thread can complete a job meanwhile
	}
	next := issued{job: c.queue.pop(), begun: time.Now()}
	c.note(next.job)
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
	if j.job.prepares && c.isClosing() {
		return closedError(c.name)
	}
	if c.stream == nil {
		if c.stream, err = c.newStream(); err != nil {
			return err
		}
	}
	if j.event, err = c.newEvent(); err != nil {
		return err
	}
	if c.planner.dir != Out {
		if err = c.late.refuse(j.job.Moves); err != nil {
			return &refusal{error: fmt.Errorf("%s: %w", c.name, err)}
		}
	}
	j.queued = true
	if j.job.prepares {
		c.prepare(j.job)
	} else if j.job.copiesMany() {
		c.calibrate()
	}
	c.planner.from, c.landing = j.job.from, 0
	if err = c.copyWithinReach(j.job.Moves); err != nil {
		err = &refusal{err, c.landing}
	}
	failed := c.stream.Record(j.event) // also behind copies that were queued before one was refused: they may be late
	if j.recorded = failed == nil; err == nil && failed != nil {
		err = fmt.Errorf("%s: recording an event: %w", c.name, failed)
	}
	return err
}

// copyWithinReach is copyInSomeWay. Where a kernel cannot reach all that lies between the runs of strided moves, as between two
// allocations, the kernel gets the runs one by one. Where it cannot reach a run either, the moves are copied without it. From another
// device they are not copied by a kernel.
func (c *copier) copyWithinReach(moves []Move) error {
	err := c.copyInSomeWay(moves)
	if errors.Is(err, device.ErrOutOfReach) && len(c.planner.shapes) > 0 {
		c.planner.byRuns = true
		err = c.copyInSomeWay(moves)
		c.planner.byRuns = false
	}
	if !errors.Is(err, device.ErrOutOfReach) || c.planner.from != nil {
		return err
	}
	c.warnOfReach(err)
	return c.planner.ways.without(device.Kernel, func() error { return c.copyInSomeWay(moves) })
}

// warnOfReach logs why blocks are copied without a kernel: once, since every job with blocks in the same memory has the same cause.
func (c *copier) warnOfReach(err error) {
	if c.outOfReach {
		return
	}
	c.outOfReach = true
	c.log.Warn("blocks that a kernel cannot reach are copied without it; this is logged once", zap.String("device", c.name), zap.Error(err))
}

// copyInSomeWay is copy, again for each way that the device turns out to lack.
func (c *copier) copyInSomeWay(moves []Move) error {
	err := c.copy(moves)
	for err != nil && c.planner.ways.lose(err) {
		if errors.Is(err, device.ErrNoKernel) {
			c.log.Warn("blocks are copied without a kernel", zap.String("device", c.name), zap.Error(err))
		}
		err = c.copy(moves)
	}
	return err
}

// loadKernels loads what the stream needs for copies by kernels, with a list without copies. Where that fails, so does the first
// use, which copies in another way.
func (c *copier) loadKernels() {
	kernels, able := c.stream.(device.KernelStream)
	if able && c.planner.below > 0 && (c.planner.ways.prefer == device.Kernel || c.tables != nil) {
		_ = kernels.CopyKernel(c.planner.dir.kind(), nil)
	}
}

func (c *copier) newStream() (device.Stream, error) {
	stream, err := c.device.NewStream()
	if err != nil {
		return nil, fmt.Errorf("%s: making a stream: %w", c.name, err)
	}
	return stream, nil
}

// newEvent returns an unused event, or makes one. There are as many events as jobs were in flight at the same time.
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

// copy plans the copies of the moves, and queues them.
func (c *copier) copy(moves []Move) error {
	steps := c.planner.plan(moves)
	if c.planner.wanted && c.makeGather() {
		steps = c.planner.plan(moves)
	}
	for i := range steps {
		if issued, err := c.call(&steps[i]); err != nil {
			if c.landing = 0; len(steps) == 1 { // otherwise the copies are not queued in the order of the moves
				c.landing = c.planner.movesOf(issued)
			}
			return err
		}
	}
	c.counters.gathered.Add(uint64(c.planner.gathered))
	return nil
}

// makeGather allocates the gather block. It returns false if there is no memory: the application may use all of the device's.
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

// call makes the call of a step. issued is how many copies were queued, of a step of single ones.
func (c *copier) call(s *step) (issued int, err error) {
	issued, err = s.queue(c.stream)
	if s.way != device.Single {
		if err != nil {
			return 0, fmt.Errorf("%s: a %v of %d copies %v: %w", c.name, s.way, s.count(), s.kind, err)
		}
		c.counters.together[s.way].Add(1)
		return 0, nil
	}
	c.counters.copies[s.kind].Add(uint64(issued))
	if err != nil {
		failed := s.copies[min(issued, len(s.copies)-1)]
		err = fmt.Errorf("%s: copying %d bytes %s, from %#x to %#x: %w", c.name, failed.Length, s.sides(), failed.Src, failed.Dst, err)
	}
	return issued, err
}

// sides says between which memory the copies of a step are.
func (s *step) sides() string {
	if s.from != nil {
		return "from " + s.from.name
	}
	return s.kind.String()
}

// queue makes the call of a step. issued is how many copies were queued, of a step of single ones that has failed.
func (s *step) queue(stream device.Stream) (issued int, err error) {
	switch s.way {
	case device.Single:
		if s.from != nil {
			return s.from.copyTo(stream, s.copies)
		}
		return stream.Copy(s.kind, s.copies)
	case device.Batch:
		return 0, stream.CopyBatch(s.kind, s.copies)
	case device.Matrix:
		matrices, able := stream.(device.MatrixStream)
		if !able {
			return 0, device.ErrNoMatrix
		}
		return 0, matrices.CopyMatrix(s.kind, s.rows)
	}
	if s.shape != nil {
		strided, able := stream.(device.StridedStream)
		if !able {
			return 0, device.ErrNoKernel
		}
		return 0, strided.CopyStrided(s.kind, &s.shape.Strided, s.shape.at)
	}
	kernels, able := stream.(device.KernelStream)
	if !able {
		return 0, device.ErrNoKernel
	}
	return 0, kernels.CopyKernel(s.kind, s.copies)
}
