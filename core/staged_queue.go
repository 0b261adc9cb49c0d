package core

import (
	"slices"
	"sync"

	"kvferry/core/staging"
)

// shortChunk is what a chunk holds whose copy nothing else goes on beside, in bytes: so much is soon copied. Those are
// the first of a WRITE, before which the network has nothing to do, and the last of a READ, after which it has nothing.
// The others hold as much as is under way when a WRITE is cut, or an eighth of what is left of a READ, but no more than a
// block.
const shortChunk = 256 << 10

// stagedQueue is the works of one route. It exists while there are any, or chunks of them.
type stagedQueue struct {
	stager    *stager
	route     stagedRoute
	transport Transport
	account   *staging.Account

	mu       sync.Mutex
	cursors  []*stagedCursor // the first is next
	underWay uint64          // bytes in chunks
	pumping  bool            // somebody cuts chunks
	again    bool            // and is to look once more
	ended    error           // why it takes nothing more
	unlisted bool            // it is off the stager's list: nobody is to use it
}

// stagedCursor is what is left to cut of a work.
type stagedCursor struct {
	work *Work
	task int32  // where the next chunk begins
	skip uint64 // bytes of that task before it
	left uint64 // bytes not cut yet
}

func (c *stagedCursor) settleRest(err error) {
	c.work.Settle(c.task, c.skip, c.left, err)
	c.left = 0
}

// settleTask ends what is not cut yet of the task in which the next chunk begins.
func (c *stagedCursor) settleTask(err error) {
	rest := c.work.Tasks[c.task].Length - c.skip
	c.work.Settle(c.task, c.skip, rest, err)
	c.advance(rest)
}

// advance skips bytes that do not go beyond the task in which the cursor stands.
func (c *stagedCursor) advance(length uint64) {
	c.left -= length
	c.skip += length
	if task := &c.work.Tasks[c.task]; c.skip == task.Length {
		c.task, c.skip = task.Next, 0
	}
}

// add queues a work, or returns false.
func (q *stagedQueue) add(c *stagedCursor) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.unlisted {
		q.cursors = append(q.cursors, c)
	}
	return !q.unlisted
}

// pump starts the chunks for which there are leases. It is called when there is something new to cut, and when a lease
// may be had again. One goroutine at a time does it: a chunk may come to its end while it is being started.
func (q *stagedQueue) pump() {
	q.mu.Lock()
	q.again = true
	if q.pumping {
		q.mu.Unlock()
		return
	}
	q.pumping = true
	for q.again {
		q.again = false
		for p := q.next(); p != nil; p = q.next() {
			q.mu.Unlock()
			p.start()
			q.mu.Lock()
		}
	}
	q.pumping = false
	q.mu.Unlock()
	q.endIfIdle()
}

// next cuts a chunk from the work whose turn it is; nil when there is no work, or no lease. The lock is held.
func (q *stagedQueue) next() *chunk {
	for len(q.cursors) > 0 {
		c := q.cursors[0]
		if err := q.givenUp(c.work); err != nil {
			c.settleRest(err)
		} else if c.work.Lost(c.task) {
			c.settleTask(ErrPartFailed)
		} else if lease, err := q.account.TryLease(min(c.left, q.chunkSize(c))); err != nil {
			c.settleRest(err)
		} else if lease == nil {
			return nil
		} else {
			p := q.cut(c, lease)
			q.rotate()
			return p
		}
		if c.left == 0 {
			q.cursors = q.cursors[1:]
		}
	}
	return nil
}

// chunkSize is the most that the next chunk of a work holds, in bytes.
func (q *stagedQueue) chunkSize(c *stagedCursor) uint64 {
	size := q.underWay
	if q.route.opcode == Read {
		size = c.left / 8
	}
	return min(q.route.device.BlockSize(), max(shortChunk, size))
}

// rotate gives the others their turns before the first work has another.
func (q *stagedQueue) rotate() {
	first := q.cursors[0]
	q.cursors[0] = nil
	q.cursors = q.cursors[1:]
	if first.left > 0 {
		q.cursors = append(q.cursors, first)
	}
}

// givenUp is why nothing more is done for a work. The lock is held.
func (q *stagedQueue) givenUp(w *Work) error {
	if err := w.Aborted(); err != nil {
		return err
	}
	return q.ended
}

// end fails what the queue holds or gets from now on.
func (q *stagedQueue) end(reason error) {
	q.mu.Lock()
	q.ended = reason
	q.mu.Unlock()
	q.settleQueued()
}

// settleQueued settles what is not cut yet of the works that are given up.
func (q *stagedQueue) settleQueued() {
	q.mu.Lock()
	q.cursors = slices.DeleteFunc(q.cursors, func(c *stagedCursor) bool {
		err := q.givenUp(c.work)
		if err != nil {
			c.settleRest(err)
		}
		return err != nil
	})
	q.mu.Unlock()
	q.pump()
}

// endIfIdle takes the queue off the list when nothing is queued or under way.
func (q *stagedQueue) endIfIdle() {
	q.stager.mu.Lock()
	defer q.stager.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stager.queues[q.route] == q && len(q.cursors) == 0 && q.underWay == 0 {
		q.unlisted = true
		delete(q.stager.queues, q.route)
		q.account.Close()
	}
}
