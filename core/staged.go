package core

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"kvferry/core/staging"
	"kvferry/core/status"
)

// The way of a work whose local memory is on a device. The transport sees host memory only:
//
//  1. submit queues the work with the others for the same peer, device and opcode. pump cuts the queue into parcels, as
//     many as staging blocks can be leased for: a parcel is a lease and the shares of tasks whose bytes pass through it.
//  2. WRITE: a job copies the shares into the lease. Then the parcel goes to the transport, as a work whose local
//     addresses are in the lease, and each of its ranges is settled as the transport settles it.
//  3. READ: the parcel goes to the transport first. When all its ranges are settled, a job copies those that arrived to
//     the device, and they are settled when that has ended.
//  4. end gives the lease back; whoever waits for one is told, and pump goes on.
//
// Copying and the network overlap, since a peer has several parcels under way. What is given up is settled at once while
// it is queued, and otherwise when the step that it is in has ended.

// shortParcel is what a parcel holds whose copy nothing else goes on beside, in bytes: so much is soon copied. Those are
// the first of a WRITE, before which the network has nothing to do, and the last of a READ, after which it has nothing.
// The others hold as much as is under way when a WRITE is cut, or an eighth of what is left of a READ, but no more than a
// block.
const shortParcel = 256 << 10

type stager struct {
	mu     sync.Mutex
	queues map[stagedRoute]*stagedQueue
	closed bool
	busy   group // parcels under way
}

func newStager() *stager { return &stager{queues: map[stagedRoute]*stagedQueue{}} }

type stagedRoute struct {
	segment *Segment
	device  *staging.Device
	opcode  Opcode
}

// stagedQueue is the works of one route. It exists while there are any, or parcels of them.
type stagedQueue struct {
	stager    *stager
	route     stagedRoute
	transport Transport
	account   *staging.Account

	mu       sync.Mutex
	cursors  []*stagedCursor // the first is next
	underWay uint64          // bytes in parcels
	pumping  bool            // somebody cuts parcels
	again    bool            // and is to look once more
	ended    error           // why it takes nothing more
	unlisted bool            // it is off the stager's list: nobody is to use it
}

// stagedCursor is what is left to cut of a work.
type stagedCursor struct {
	work *Work
	task int32  // where the next parcel begins
	skip uint64 // bytes of that task before it
	left uint64 // bytes not cut yet
}

func (c *stagedCursor) settleRest(err error) {
	c.work.Settle(c.task, c.skip, c.left, err)
	c.left = 0
}

// settleTask ends what is not cut yet of the task in which the next parcel begins.
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

// submit takes over a work; t carries its parcels.
func (s *stager) submit(w *Work, t Transport) {
	c := &stagedCursor{work: w, task: w.Head, left: w.Bytes}
	for {
		q, err := s.queue(stagedRoute{w.Segment, w.device, w.Tasks[w.Head].Opcode}, t)
		if err != nil {
			w.settleAll(err)
			return
		}
		if q.add(c) {
			q.pump()
			return
		}
	}
}

// queue finds or makes the queue of a route.
func (s *stager) queue(r stagedRoute, t Transport) (*stagedQueue, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, closedError()
	}
	if err := r.segment.Removed(); err != nil {
		return nil, err
	}
	q := s.queues[r]
	if q == nil {
		q = &stagedQueue{stager: s, route: r, transport: t}
		q.account = r.device.Account(directionOf(r.opcode), staging.Initiator, q.pump)
		s.queues[r] = q
	}
	return q, nil
}

// directionOf is how the local bytes of a request pass through staging blocks.
func directionOf(o Opcode) staging.Direction {
	if o == Write {
		return staging.Out
	}
	return staging.In
}

// all are the queues there are.
func (s *stager) all() []*stagedQueue {
	s.mu.Lock()
	defer s.mu.Unlock()
	queues := make([]*stagedQueue, 0, len(s.queues))
	for _, q := range s.queues {
		queues = append(queues, q)
	}
	return queues
}

// abort settles what is queued of aborted works.
func (s *stager) abort() {
	for _, q := range s.all() {
		q.settleQueued()
	}
}

// forget fails what is queued for a segment that was removed, and what is not yet with the transport.
func (s *stager) forget(segment *Segment) {
	for _, q := range s.all() {
		if q.route.segment == segment {
			q.end(segment.Removed())
		}
	}
}

// close settles what is queued, and all that is submitted from now on. The parcels under way go on to their ends.
func (s *stager) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, q := range s.all() {
		q.end(closedError())
	}
}

// wait returns when no parcel is under way, or tells after a limited time which are. It comes after close, and after the
// transports were closed.
func (s *stager) wait(limit time.Duration) error {
	if s.busy.join(limit) {
		return nil
	}
	return status.Errorf(status.BatchBusy, "staging blocks are %w: %s", ErrInUse, enumerate(s.all(), func(q *stagedQueue) string {
		q.mu.Lock()
		defer q.mu.Unlock()
		return fmt.Sprintf("%d bytes between %s and segment %q", q.underWay, q.route.device.Name(), q.route.segment.Name)
	}))
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

// givenUp is why nothing more is done for a work. The lock is held.
func (q *stagedQueue) givenUp(w *Work) error {
	if err := w.Aborted(); err != nil {
		return err
	}
	return q.ended
}

// pump starts the parcels for which there are leases. It is called when there is something new to cut, and when a lease
// may be had again. One goroutine at a time does it: a parcel may come to its end while it is being started.
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

// next cuts a parcel from the work whose turn it is; nil when there is no work, or no lease. The lock is held.
func (q *stagedQueue) next() *parcel {
	for len(q.cursors) > 0 {
		c := q.cursors[0]
		if err := q.givenUp(c.work); err != nil {
			c.settleRest(err)
		} else if c.work.Lost(c.task) {
			c.settleTask(ErrPartFailed)
		} else if lease, err := q.account.TryLease(min(c.left, q.parcelSize(c))); err != nil {
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

// parcelSize is the most that the next parcel of a work holds, in bytes.
func (q *stagedQueue) parcelSize(c *stagedCursor) uint64 {
	size := q.underWay
	if q.route.opcode == Read {
		size = c.left / 8
	}
	return min(q.route.device.BlockSize(), max(shortParcel, size))
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

// parcel is a lease, and the part of a work that passes through it. It is the owner of the work that it makes of that
// for the transport.
type parcel struct {
	queue  *stagedQueue
	parent *Work
	lease  *staging.Lease
	work   Work
	shares []share // as many as the work has tasks
	more   bool    // of the parent is left
	job    staging.Job

	mu      sync.Mutex
	unmoved uint64 // bytes that the transport has not settled
}

// share is a part of one of the parent's tasks.
type share struct {
	task    int32        // of the parent
	move    staging.Move // between the device and the lease
	arrived uint64       // bytes of a READ that are in the lease
}

func (s *share) complete() bool { return s.arrived == s.move.Length }

// cut fills a lease from a work. The lock is held.
func (q *stagedQueue) cut(c *stagedCursor, lease *staging.Lease) *parcel {
	p := &parcel{queue: q, parent: c.work, lease: lease}
	p.work = Work{Segment: c.work.Segment, Head: -1, owner: p, shared: &c.work.own}
	expected := min(lease.Length/c.work.Tasks[c.task].Length+1, uint64(len(c.work.Tasks)))
	p.work.Tasks, p.shares = make([]Task, 0, expected), make([]share, 0, expected)
	for end := uint64(0); c.left > 0; {
		task := &c.work.Tasks[c.task]
		local, length := task.Local+uintptr(c.skip), task.Length-c.skip
		at := q.route.device.Place(end, local, length)
		if at >= lease.Length {
			break
		}
		length = min(length, lease.Length-at)
		block := lease.Addr + uintptr(at)
		p.shares = append(p.shares, share{task: c.task, move: staging.Move{Device: local, Block: block, Length: length}})
		p.work.Tasks = append(p.work.Tasks, Task{Request: task.Request, Next: -1})
		part := &p.work.Tasks[len(p.work.Tasks)-1].Request
		part.Local, part.Remote, part.Length = block, task.Remote+c.skip, length
		p.work.append(int32(len(p.shares) - 1))
		end = at + length
		c.advance(length)
	}
	p.unmoved, p.more = p.work.Bytes, c.left > 0
	q.underWay += p.work.Bytes
	q.stager.busy.Add(1)
	return p
}

// start does a parcel's first step.
func (p *parcel) start() {
	if p.queue.route.opcode == Write {
		p.copy(p.forward)
	} else {
		p.forward(nil)
	}
}

// copy has the shares copied that are complete on this side, and calls then on a goroutine of the device, also when there
// is nothing to copy.
func (p *parcel) copy(then func(error)) {
	route := p.queue.route
	for i := range p.shares {
		if s := &p.shares[i]; route.opcode == Write || s.complete() {
			p.job.Moves = append(p.job.Moves, s.move)
		}
	}
	p.job.Done = then
	route.device.Start(directionOf(route.opcode), &p.job)
}

// forward gives the parcel to the transport. Where others are under way, the thread that calls it waits for their copies,
// and is not to send.
func (p *parcel) forward(err error) {
	q := p.queue
	q.mu.Lock()
	if err == nil {
		err = q.givenUp(p.parent)
	}
	p.work.Staged = p.more || q.underWay > p.work.Bytes
	q.mu.Unlock()
	if err != nil {
		p.work.settleAll(err)
		return
	}
	q.transport.Submit(&p.work)
}

func (p *parcel) aborted() error { return p.parent.Aborted() }

func (p *parcel) lost(task int32) bool { return p.parent.Lost(p.shares[task].task) }

// settle is told by the transport what became of a range. Bytes of a READ that arrived have a way to go yet.
func (p *parcel) settle(task int32, part uint64, err error) {
	onWay := err == nil && p.queue.route.opcode == Read
	if !onWay {
		p.parent.owner.settle(p.shares[task].task, part, err)
	}
	p.mu.Lock()
	if onWay {
		p.shares[task].arrived += part
	}
	p.unmoved -= part
	last := p.unmoved == 0
	p.mu.Unlock()
	if last {
		p.moved()
	}
}

// moved is called when the transport has settled the whole parcel, perhaps under locks of the transport: nothing that
// follows here submits.
func (p *parcel) moved() {
	if p.queue.route.opcode == Write {
		p.end()
	} else {
		p.copy(p.land)
	}
}

// land settles the bytes of a READ that came into the lease: they are on the device now, or err tells why they are not.
func (p *parcel) land(err error) {
	for i := range p.shares {
		s := &p.shares[i]
		switch {
		case s.arrived == 0:
		case s.complete():
			p.parent.owner.settle(s.task, s.arrived, err)
		default:
			p.parent.owner.settle(s.task, s.arrived, ErrPartFailed)
		}
	}
	p.end()
}

// end gives the lease back.
func (p *parcel) end() {
	q := p.queue
	p.lease.Release()
	q.mu.Lock()
	q.underWay -= p.work.Bytes
	q.mu.Unlock()
	q.pump()
	q.stager.busy.Done()
}
