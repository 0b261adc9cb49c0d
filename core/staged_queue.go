package core

import (
	"slices"
	"sync"

	"kvferry/core/layout"
	"kvferry/core/staging"
)

// shortChunk is the size of a chunk that is copied while the network is idle, in bytes. Its copy is soon done. These are the first
// chunk of a WRITE, before the network has anything to send, and the last chunk of a READ, after it has received everything.
// Other chunks of a WRITE are as large as all chunks that are under way, other chunks of a READ an eighth of the rest, but no
// larger than a block.
const shortChunk = 256 << 10

// chunksTogether is how many chunks of a READ are given to the transport at once. To cut so many takes less time than the chunk
// before them is under way.
const chunksTogether = 16

// stagedQueue is the works of one route. It exists while it has works, or chunks of them are under way.
//
//  1. add queues a work.
//  2. pump starts chunks, as long as next finds a work and a lease for one. chunkSize says how large a chunk may be, and rotate
//     gives the next work its turn. After the first chunk of a READ, several are started together: the transport wakes threads once
//     for all of them.
//  3. end and settleQueued fail what is queued and given up.
//  4. endIfIdle removes the queue from the stager's map.
type stagedQueue struct {
	stager    *stager
	route     stagedRoute
	transport Transport
	account   *staging.Account

	mu       sync.Mutex
	cursors  []*stagedCursor // the first one is next
	underWay uint64          // bytes in chunks
	copied   []*chunk        // of a WRITE, that are in their leases and not with the transport yet
	pumping  bool            // a goroutine is in pump
	again    bool            // that goroutine has to go through the queue once more
	ended    error           // why the queue takes no further work
	unlisted bool            // it is not in the stager's map any more, and must not be used
}

// stagedCursor is the part of a work that is not cut into chunks yet.
type stagedCursor struct {
	work *Work
	task int32  // the task in which the next chunk begins
	skip uint64 // bytes of that task before the next chunk
	left uint64 // bytes that are not cut yet

	parts *layout.Parts // of a transfer of a plan, instead of skip; nil otherwise
}

func newStagedCursor(w *Work) *stagedCursor {
	c := &stagedCursor{work: w, task: w.Head, left: w.Bytes}
	if w.Transfer != nil {
		c.parts = w.Transfer.Parts()
	}
	return c
}

// settleRest ends the part of the work that is not cut yet.
func (c *stagedCursor) settleRest(err error) {
	c.work.Settle(c.task, c.skip, c.left, err)
	c.left = 0
}

// settleTask ends the rest of the task in which the next chunk begins.
func (c *stagedCursor) settleTask(err error) {
	rest := c.work.Tasks[c.task].Length - c.skip
	if c.parts != nil {
		rest = c.left
	}
	c.work.Settle(c.task, c.skip, rest, err)
	c.advance(rest)
}

// advance moves the cursor over length bytes, which are in a chunk now, or settled. The task in which the next chunk begins has at
// least as many left.
func (c *stagedCursor) advance(length uint64) {
	c.left -= length
	if c.parts != nil {
		return
	}
	c.skip += length
	if task := &c.work.Tasks[c.task]; c.skip == task.Length {
		c.task, c.skip = task.Next, 0
	}
}

// add queues a work. It returns false if the queue is unlisted.
func (q *stagedQueue) add(c *stagedCursor) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.unlisted {
		q.cursors = append(q.cursors, c)
	}
	return !q.unlisted
}

// pump starts as many chunks as there are leases for. It is called when a work was added, and when a lease may be available again.
// One goroutine at a time is in it; others set again, so that it goes through the queue once more. A chunk may end, and call pump,
// while it is being started.
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
		for chunks := q.nextFew(); len(chunks) > 0; chunks = q.nextFew() {
			q.mu.Unlock()
			q.start(chunks)
			q.mu.Lock()
		}
	}
	q.pumping = false
	q.mu.Unlock()
	q.endIfIdle()
}

// nextFew cuts the chunks that are started together. The lock is held.
func (q *stagedQueue) nextFew() []*chunk {
	most := chunksTogether
	if q.route.opcode == Write || q.underWay == 0 {
		most = 1 // the copies of a chunk of a WRITE begin at once, and so does the network if it has nothing to do yet
	}
	var chunks []*chunk
	for len(chunks) < most {
		p := q.next()
		if p == nil {
			break
		}
		chunks = append(chunks, p)
	}
	return chunks
}

// next cuts a chunk from the first work; nil if there is no work, or no lease. The lock is held.
func (q *stagedQueue) next() *chunk {
	for len(q.cursors) > 0 {
		c := q.cursors[0]
		if err := q.givenUp(c.work); err != nil {
			c.settleRest(err)
		} else if c.work.WillFail(c.task) {
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

// chunkSize is the largest size of the next chunk of a work, in bytes. See shortChunk.
func (q *stagedQueue) chunkSize(c *stagedCursor) uint64 {
	size := q.underWay
	if q.route.opcode == Read {
		size = c.left / 8
	}
	size = min(q.route.device.BlockSize(), max(shortChunk, size))
	if c.parts != nil {
		next := c.parts.Run()
		size = min(size, bytesOf(int(q.route.device.MostRuns(false)), next.Run))
	}
	return size
}

// rotate moves the first work to the end of the queue, so that the works take turns.
func (q *stagedQueue) rotate() {
	first := q.cursors[0]
	q.cursors[0] = nil
	q.cursors = q.cursors[1:]
	if first.left > 0 {
		q.cursors = append(q.cursors, first)
	}
}

// givenUp is why a work is given up; nil if it is not. The lock is held.
func (q *stagedQueue) givenUp(w *Work) error {
	if err := w.Aborted(); err != nil {
		return err
	}
	return q.ended
}

// end fails the works in the queue, and those that are added from now on.
func (q *stagedQueue) end(reason error) {
	q.mu.Lock()
	q.ended = reason
	q.mu.Unlock()
	q.settleQueued()
}

// settleQueued settles the works that are given up, as far as they are not cut yet.
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

// endIfIdle removes the queue from the stager's map when nothing is queued or under way.
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
