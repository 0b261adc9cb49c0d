package staging

import (
	"fmt"
	"time"

	"go.uber.org/zap"
)

// Step 4 of the way of a job: its end. See copier.

func (c *copier) completeNext() {
	next := c.flight.pop()
	c.completing = true
	if c.queue.len() > 0 && !c.issuing {
		c.work.wakeOne() // the other thread goes on while this one reports
	}
	c.mu.Unlock()
	err := next.err
	var others []failure
	if next.queued {
		others, err = c.complete(&next)
	}
	c.recycle(next.event)
	if err == nil {
		c.counters.copying.Add(int64(time.Since(next.begun)))
	}
	c.report(next.job, err)
	for _, f := range others {
		c.report(f.job, f.err)
	}
	c.mu.Lock()
	c.completing = false
}

// complete waits for the end of a job that has copies on the stream.
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
	case !done: // the stream has used up the time limit, and gets little more time
		return c.recover(j, fmt.Errorf("%s: copies were not done within %v", c.name, c.timeout), c.timeout/8)
	}
	return nil, nil
}

// failure is a job that fails together with another one.
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
