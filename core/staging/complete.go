package staging

import (
	"fmt"
	"time"

	"go.uber.org/zap"
)

// Step 4 of the way of a job: its end. See copier.

// endedTogether bounds the jobs that are reported together.
const endedTogether = 8

// completeNext completes the oldest job, and others that are known to be done by now.
func (c *copier) completeNext() {
	ended := c.popEnded()
	c.completing = true
	if c.queue.len() > 0 && !c.issuing {
		c.work.wakeOne() // the other thread goes on while this one reports
	}
	c.mu.Unlock()
	var after []func()
	for i := range ended {
		after = c.completeOne(&ended[i], after)
	}
	callAll(after)
	c.mu.Lock()
	c.completing = false
}

// popEnded removes the oldest job from those in flight, and the jobs behind it of which the device says that they are done. To ask it
// takes a microsecond, where each report may wake threads. The lock is held, and released meanwhile.
func (c *copier) popEnded() []issued {
	ended := []issued{c.flight.pop()}
	for ended[len(ended)-1].happened && len(ended) < endedTogether && c.done() && c.flight.first().happened {
		ended = append(ended, c.flight.pop())
	}
	return ended
}

// completeOne reports a job, and others that have failed with it. It adds what is to be called after that.
func (c *copier) completeOne(next *issued, after []func()) []func() {
	err := next.err
	var others []failure
	if next.queued {
		others, err = c.complete(next)
	}
	c.recycle(next.event)
	if err == nil {
		c.counters.copying.Add(int64(time.Since(next.begun)))
	}
	after = c.report(next.job, err, after)
	for _, f := range others {
		after = c.report(f.job, f.err, after)
	}
	return after
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

// report tells the owner of a job about its end, and adds what is to be called after that.
func (c *copier) report(j *Job, err error, after []func()) []func() {
	_, refused := Landed(err)
	switch {
	case j.prepares: // Device.prepared says what has failed
	case IsRefused(err): // the bytes pass through the host
	case refused && j.Again:
		c.counters.failed.Add(1)
	case err != nil:
		c.counters.failed.Add(1)
		c.log.Warn("a staging job failed", zap.String("device", c.name), zap.Int("moves", len(j.Moves)), zap.Error(err))
	default:
		c.counters.count(j)
	}
	return j.end(err, after)
}
