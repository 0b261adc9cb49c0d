package staging

import (
	"errors"
	"fmt"

	"kvferry/core/device"

	"go.uber.org/zap"
)

// close ends the copier, after the jobs that were started. wait returns when it has ended.
func (c *copier) close() {
	c.pool.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return
	}
	c.closing, c.asked = true, false
	if c.threads == 0 {
		close(c.ended)
	}
	c.work.Broadcast()
}

func (c *copier) wait() error {
	<-c.ended
	return c.err
}

// unbound is told that a thread could not be bound. Another one does all the work. Where there is none, what there is to do
// fails for this reason, and what comes later has new threads launched.
func (c *copier) unbound(reason error) {
	c.mu.Lock()
	c.binding--
	c.work.Broadcast()
	if c.binding+c.serving > 0 {
		c.mu.Unlock()
		c.log.Warn("staging makes do with one thread", zap.String("device", c.name), zap.Error(reason))
		return
	}
	jobs, asked := c.queue.take(), c.asked
	c.asked = false
	c.mu.Unlock()
	if asked {
		c.pool.grown(0, reason)
	}
	for _, j := range jobs {
		c.report(j, reason)
	}
}

// leave is the end of a thread.
func (c *copier) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.threads--
	switch {
	case c.threads > 0:
	case c.queue.len() > 0 || c.asked:
		c.launch()
	case c.closing:
		close(c.ended)
	}
}

// free gives back all there is on the device. Memory that was given up goes back, too: who closes has no use for it that
// a late copy could spoil, and the library knows what the device still does. But while a stream is stuck nothing of it is
// touched.
func (c *copier) free() {
	stuck := false
	for _, a := range c.abandoned {
		stuck = !c.freeAbandoned(a) || stuck
	}
	if c.stream != nil {
		c.failedTo("close a stream", c.stream.Close())
	}
	c.closeEvents(c.events)
	c.freeGather(c.planner.gather)
	blocks, givenUp := c.pool.drain()
	if !stuck {
		blocks = append(blocks, givenUp...)
	}
	for _, addr := range blocks {
		c.failedTo("free a staging block", c.device.FreePinned(addr))
	}
}

// freeAbandoned reports whether a stream that had to be abandoned is not stuck any more.
func (c *copier) freeAbandoned(a abandoned) bool {
	if a.stuck {
		stuck, err := drain(a.stream, c.timeout/8)
		if stuck {
			c.failedTo("bring a stream to rest: it is left as it is, with its memory", err)
			return false
		}
		c.failedTo("close a stream", a.stream.Close())
	}
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

// failedTo notes what close is to return.
func (c *copier) failedTo(what string, err error) {
	if err == nil {
		return
	}
	c.log.Warn("staging failed to "+what, zap.String("device", c.name), zap.Error(err))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = errors.Join(c.err, fmt.Errorf("%s: failed to %s: %w", c.name, what, err))
}
