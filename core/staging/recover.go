package staging

import (
	"errors"
	"fmt"
	"time"

	"kvferry/core/device"

	"go.uber.org/zap"
)

// Step 5 of the way of a job: one has failed, and the stream has to come to rest. See copier.

// abandoned is a stream that could not be given up, and what its copies may still touch.
type abandoned struct {
	stream device.Stream
	stuck  bool // its copies do not end; otherwise Close has failed
	events []device.Event
	gather uintptr
	late   *lateStream // its copies, if they do not end; nil otherwise
}

var errGivenUp = errors.New("the stream was given up")

// recover brings the stream to rest after a job has failed for a reason, within a time limit. It returns the reason,
// with what became of the stream, and the other jobs that fail if it had to be given up.
func (c *copier) recover(j *issued, reason error, limit time.Duration) (others []failure, err error) {
	c.halt()
	defer c.resume()
	stuck, err := drain(c.stream, limit)
	if err == nil {
		return nil, reason
	}
	reason = fmt.Errorf("%w; %w: %w", reason, errGivenUp, err)
	dead := c.take(j)
	if !stuck {
		err = c.stream.Close()
	}
	if err == nil {
		c.closeEvents(eventsOf(dead))
	} else {
		reason = fmt.Errorf("%w; it cannot be closed, and a copy may still be under way", reason)
		c.abandon(dead, stuck, reason)
	}
	c.stream = nil
	return failures(dead[1:], c.name, reason), reason
}

// drain brings a stream to rest. stuck means that the library has reported a time-out, by a clock that may differ a little from
// this one: to close such a stream may take for ever.
func drain(s device.Stream, limit time.Duration) (stuck bool, err error) {
	began := time.Now()
	err = s.Drain(limit)
	return err != nil && time.Since(began) >= limit*3/4, err
}

// halt waits until no job is being issued. None is issued before resume is called.
func (c *copier) halt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recovering = true
	for c.issuing {
		c.rest.Wait()
	}
}

func (c *copier) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recovering = false
}

// take returns a job and all others in flight. If the copier is being closed, it also returns the jobs that were not issued.
func (c *copier) take(j *issued) []issued {
	c.mu.Lock()
	defer c.mu.Unlock()
	dead := append([]issued{*j}, c.flight.take()...)
	if c.closing {
		for _, job := range c.queue.take() {
			dead = append(dead, issued{job: job})
		}
	}
	j.event = nil // it is not used again
	return dead
}

func failures(dead []issued, name string, reason error) []failure {
	var all []failure
	for _, j := range dead {
		err := fmt.Errorf("%s: given up with a job before it: %w", name, reason)
		switch {
		case j.err == nil:
		case j.queued: // one of its copies was refused, and others may be on the stream
			err = fmt.Errorf("%w; %w", j.err, err)
		default:
			err = j.err
		}
		all = append(all, failure{j.job, err})
	}
	return all
}

func eventsOf(dead []issued) []device.Event {
	var events []device.Event
	for _, j := range dead {
		if j.event != nil {
			events = append(events, j.event)
		}
	}
	return events
}

// abandon takes the memory out of use that copies of dead jobs may still touch.
func (c *copier) abandon(dead []issued, stuck bool, reason error) {
	var blocks []uintptr
	for _, j := range dead {
		if j.queued && len(j.job.Moves) > 0 {
			blocks = append(blocks, j.job.Moves[0].Block)
		}
	}
	a := abandoned{stream: c.stream, stuck: stuck, events: eventsOf(dead), gather: c.planner.gather}
	c.planner.gather = 0
	if stuck { // otherwise the device has failed, and makes none of the copies
		a.late = c.noteLate(dead)
	}
	c.abandoned = append(c.abandoned, a)
	given := c.pool.giveUp(blocks)
	c.log.Error("the device is stuck: staging blocks are given up", zap.String("device", c.name), zap.Int("blocks", given), zap.Error(reason))
}
