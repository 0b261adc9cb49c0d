package staging

import (
	"errors"
	"fmt"

	"kvferry/core/device"

	"go.uber.org/zap"
)

// close lets the copier end when the jobs that were started are done. wait returns when it has ended.
func (c *copier) close() {
	c.pool.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return
	}
	c.closing, c.asked = true, false
	close(c.stopping)
	c.endIfIdle()
	c.work.wakeAll()
}

func (c *copier) wait() error {
	<-c.ended
	return c.err
}

// unbound is called when a thread could not be bound. The other thread then does all the work. If there is no other one, the jobs
// in the queue fail for this reason, and later jobs launch new threads.
func (c *copier) unbound(reason error) {
	c.mu.Lock()
	c.binding--
	c.work.wakeAll()
	if c.binding+c.serving > 0 {
		c.mu.Unlock()
		c.log.Warn("staging goes on with one thread", zap.String("device", c.name), zap.Error(reason))
		return
	}
	jobs, asked := c.queue.take(), c.asked
	c.asked = false
	c.mu.Unlock()
	if asked {
		c.pool.grown(0, reason)
	}
	var after []func()
	for _, j := range jobs {
		after = c.report(j, reason, after)
	}
	callAll(after)
}

// threadEnded is called at the end of a thread.
func (c *copier) threadEnded() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.threads--
	switch {
	case c.threads > 0:
	case c.queue.len() > 0 || c.asked:
		c.launch()
	default:
		c.endIfIdle()
	}
}

// endIfIdle is called with the lock held: when the copier is being closed, and when one of its threads has ended.
func (c *copier) endIfIdle() {
	if c.closing && c.threads == 0 && !c.calibrating && !c.awaiting {
		close(c.ended)
	}
}

// free releases everything on the device, also memory that was given up: nothing uses the memory any more that a late copy could
// overwrite, and the library knows what the device still does. But the memory of a stream that is still stuck is left alone.
func (c *copier) free() {
	c.awaitCalls()
	stuck := false
	for _, a := range c.abandoned {
		stuck = !c.freeAbandoned(a) || stuck
	}
	if c.stream != nil {
		c.failedTo("close a stream", c.stream.Close())
	}
	c.closeEvents(c.events)
	c.freeGather(c.planner.gather)
	c.freeLeftover(c.takeLeftover())
	blocks, givenUp := c.pool.drain()
	if !stuck {
		blocks = append(blocks, givenUp...)
	}
	for _, addr := range blocks {
		c.failedTo("free a staging block", c.device.FreePinned(addr))
	}
}

// awaitCalls waits until memory may be freed, for a limited time: see device.Quiet.
func (c *copier) awaitCalls() {
	if d, able := c.device.(device.Quiet); able {
		d.AwaitCalls(c.timeout)
	}
}

// freeAbandoned releases an abandoned stream and its memory. It returns false if the stream is still stuck.
func (c *copier) freeAbandoned(a abandoned) bool {
	if a.stuck {
		stuck, err := drain(a.stream, c.timeout/8)
		if stuck {
			c.failedTo("bring a stream to rest: the stream and its memory are left as they are", err)
			return false
		}
		c.failedTo("close a stream", a.stream.Close())
	}
	c.late.forget(a.late)
	c.closeEvents(a.events)
	c.freeGather(a.gather)
	return true
}

func (c *copier) closeEvents(events []device.Event) {
	for _, e := range events {
		c.failedTo("close an event", e.Close())
	}
}

func (c *copier) freeGather(addr uintptr) {
	if addr != 0 {
		c.failedTo("free the gather block", c.device.Free(addr))
	}
}

// failedTo logs an error, and adds it to the error that wait returns.
func (c *copier) failedTo(what string, err error) {
	if err == nil {
		return
	}
	c.log.Warn("staging failed to "+what, zap.String("device", c.name), zap.Error(err))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = errors.Join(c.err, fmt.Errorf("%s: failed to %s: %w", c.name, what, err))
}
