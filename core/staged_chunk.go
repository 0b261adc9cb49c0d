package core

import (
	"sync"

	"kvferry/core/clock"
	"kvferry/core/staging"
	"kvferry/core/trace"
)

// chunk is a lease, and the part of a work that passes through it. The chunk makes a work of its own of that part for the
// transport, and is its owner.
//
//  1. cut makes a chunk: a share of each task, as far as the lease has room.
//  2. start begins. WRITE: copy fills the lease from the device, and then forward submits the chunk's work to the transport. READ:
//     forward comes first, for several chunks together. If the device refuses a copy, each share is copied by itself: the memory of
//     one may be bad, and fails that share alone.
//  3. settle is called by the transport for each range. It settles a WRITE for the parent's tasks at once, and notes how much of a
//     READ has arrived.
//  4. moved: the transport is done. READ: copy takes what has arrived to the device, and land settles it.
//  5. end releases the lease, and has the queue pumped.
type chunk struct {
	queue  *stagedQueue
	parent *Work
	lease  *staging.Lease
	work   Work
	bytes  uint64         // of all shares
	shares []share        // one for each task of the work
	failed bool           // some have an error
	moves  []staging.Move // those of the shares, one after the other
	more   bool           // further chunks of the parent follow
	job    staging.Job

	mu      sync.Mutex
	unmoved uint64 // bytes that the transport has not settled yet
}

// longPart is the length from which on a range takes as long as it takes to wake a thread, in bytes.
const longPart = 32 << 10

// share is a part of one of the parent's tasks.
type share struct {
	task    int32  // of the parent
	moves   int    // between the device and the lease: the end of its part of the chunk's moves
	length  uint64 // bytes
	arrived uint64 // bytes of a READ that are in the lease
	err     error  // why it could not be copied between the device and the lease
}

func (s *share) complete() bool { return s.arrived == s.length }

// cut makes a chunk of the next bytes of a work. The queue's lock is held.
func (q *stagedQueue) cut(c *stagedCursor, lease *staging.Lease) *chunk {
	p := &chunk{queue: q, parent: c.work, lease: lease}
	p.work = Work{Segment: c.work.Segment, ID: c.work.ID, Key: c.work.Key, Head: -1, owner: p, shared: &c.work.own, trace: c.work.trace}
	if c.parts != nil {
		p.cutParts(c)
	} else {
		p.cutTasks(c)
	}
	p.bytes, p.unmoved, p.more = p.work.Bytes, p.work.Bytes, c.left > 0
	q.underWay += p.bytes
	q.stager.chunks.Add(1)
	return p
}

// cutTasks takes tasks, as many as the lease has room for.
func (p *chunk) cutTasks(c *stagedCursor) {
	expected := min(p.lease.Length/c.work.Tasks[c.task].Length+1, uint64(len(c.work.Tasks)))
	p.work.Tasks, p.shares, p.moves = make([]Task, 0, expected), make([]share, 0, expected), make([]staging.Move, 0, expected)
	for end := uint64(0); c.left > 0; {
		task := &c.work.Tasks[c.task]
		local, length := task.Local+uintptr(c.skip), task.Length-c.skip
		at := p.queue.route.device.Place(end, local, length)
		if at >= p.lease.Length {
			break
		}
		length = min(length, p.lease.Length-at)
		block := p.lease.Addr + uintptr(at)
		p.moves = append(p.moves, staging.Move{Device: local, Block: block, Length: length})
		p.addShare(c.task, length, Request{
			Opcode: task.Opcode, Local: block, Target: task.Target, Remote: task.Remote + c.skip, Length: length,
		})
		end = at + length
		c.advance(length)
	}
}

// addShare adds a share that consists of the moves since the last one, and what the transport has to do for it.
func (p *chunk) addShare(task int32, length uint64, request Request) {
	p.shares = append(p.shares, share{task: task, moves: len(p.moves), length: length})
	p.work.Tasks = append(p.work.Tasks, Task{Request: request, Next: -1})
	p.work.append(int32(len(p.shares) - 1))
}

// start begins with chunks: a WRITE is copied into the lease first, a READ goes to the transport first.
func (q *stagedQueue) start(chunks []*chunk) {
	if q.route.opcode == Read {
		q.forward(chunks)
		return
	}
	for _, p := range chunks {
		p.job.After = q.forwardCopied
		p.copy(p.copied)
	}
}

// copy starts the copies between the device and the lease, of a READ only for shares that have arrived completely. then is called
// on a goroutine of the device, also if there is nothing to copy. Shares that could not be copied have an error by then.
func (p *chunk) copy(then func()) {
	p.run(p.toCopy(), func(err error) {
		if _, refused := staging.Landed(err); refused && len(p.shares) > 1 {
			p.copyShares(0, then)
			return
		}
		p.fail(0, len(p.shares), err)
		then()
	})
}

// copyShares copies the shares from one on, each by itself. If one fails otherwise than by a refusal, the rest fails with it: a device
// that does not finish the copy in time would make each of them take as long. So does the rest when the work is given up.
func (p *chunk) copyShares(next int, then func()) {
	p.job.Again = true
	for next < len(p.shares) && !p.mayCopy(next) {
		next++
	}
	if next == len(p.shares) {
		then()
		return
	}
	if err := p.aborted(); err != nil {
		p.fail(next, len(p.shares), err)
		then()
		return
	}
	p.run(p.movesOf(next), func(err error) {
		end := next + 1
		if _, refused := staging.Landed(err); err != nil && !refused {
			end = len(p.shares)
		}
		p.fail(next, end, err)
		p.copyShares(end, then)
	})
}

// fail notes why shares from one on, up to another, were not copied; nil if they were.
func (p *chunk) fail(from, to int, err error) {
	for i := from; i < to; i++ {
		p.shares[i].err = err
	}
	p.failed = p.failed || err != nil
}

// run starts a job.
func (p *chunk) run(moves []staging.Move, done func(error)) {
	route := p.queue.route
	p.job.Moves = moves
	p.job.Done = p.recorded(done)
	route.device.Start(directionOf(route.opcode), &p.job)
}

// mayCopy reports whether a share is to be copied between the device and the lease.
func (p *chunk) mayCopy(i int) bool { return p.queue.route.opcode == Write || p.shares[i].complete() }

// toCopy are the moves of the shares that are to be copied.
func (p *chunk) toCopy() []staging.Move {
	first := 0
	for first < len(p.shares) && p.mayCopy(first) {
		first++
	}
	if first == len(p.shares) {
		return p.moves
	}
	var moves []staging.Move
	for i := range p.shares {
		if p.mayCopy(i) {
			moves = append(moves, p.movesOf(i)...)
		}
	}
	return moves
}

// movesOf are the moves of a share.
func (p *chunk) movesOf(i int) []staging.Move {
	first := 0
	if i > 0 {
		first = p.shares[i-1].moves
	}
	return p.moves[first:p.shares[i].moves]
}

// recorded has the copies of a job that is about to start recorded, before then is called. Those of a job that is refused are not:
// they are made again, or not at all.
func (p *chunk) recorded(then func(error)) func(error) {
	t := p.work.trace
	if t == nil {
		return then
	}
	kind := trace.CopyIn
	if p.queue.route.opcode == Write {
		kind = trace.CopyOut
	}
	bytes := uint64(0)
	for i := range p.job.Moves {
		bytes += p.job.Moves[i].Length
	}
	began := clock.Now()
	return func(err error) {
		if _, refused := staging.Landed(err); !refused {
			t.Copied(kind, p.queue.route.device.Name(), bytes, began)
		}
		then(err)
	}
}

// copied is called when a chunk of a WRITE is in the lease, but for shares with an error, which it settles. forwardCopied follows.
func (p *chunk) copied() {
	var failed []int
	if p.failed {
		failed = p.takeFailed()
	}
	if p.work.Head >= 0 {
		q := p.queue
		q.mu.Lock()
		q.copied = append(q.copied, p)
		q.mu.Unlock()
	}
	for _, i := range failed { // the last one ends the chunk if no other share is left
		p.settle(int32(i), p.shares[i].length, p.shares[i].err)
	}
}

// takeFailed takes the shares with an error out of the work.
func (p *chunk) takeFailed() (failed []int) {
	p.work.Head, p.work.Bytes = -1, 0
	for i := range p.shares {
		if p.shares[i].err != nil {
			failed = append(failed, i)
		} else {
			p.work.append(int32(i))
		}
	}
	return failed
}

// forwardCopied forwards the chunks of a WRITE that are in their leases.
func (q *stagedQueue) forwardCopied() {
	q.mu.Lock()
	chunks := q.copied
	q.copied = nil
	q.mu.Unlock()
	q.forward(chunks)
}

// forward gives chunks to the transport. If other chunks are under way, the calling thread has to wait for their copies, and the
// transport must not let it send: see Work.Staged.
func (q *stagedQueue) forward(chunks []*chunk) {
	works := make([]*Work, 0, len(chunks))
	for _, p := range chunks {
		q.mu.Lock()
		err := q.givenUp(p.parent)
		p.work.Staged = p.more || q.underWay > p.bytes
		q.mu.Unlock()
		if err != nil {
			p.work.settleAll(err)
			continue
		}
		works = append(works, &p.work)
	}
	if len(works) > 0 {
		q.transport.Submit(works...)
	}
}

func (p *chunk) aborted() error { return p.parent.Aborted() }

func (p *chunk) willFail(task int32) bool { return p.parent.WillFail(p.shares[task].task) }

// settle is called by the transport for each range. Bytes of a READ that have arrived must still be copied to the device.
func (p *chunk) settle(task int32, part uint64, err error) {
	toCopy := err == nil && p.queue.route.opcode == Read
	if !toCopy {
		p.parent.owner.settle(p.shares[task].task, part, err)
	}
	p.mu.Lock()
	first := p.unmoved == p.bytes
	if toCopy {
		p.shares[task].arrived += part
	}
	p.unmoved -= part
	last := p.unmoved == 0
	p.mu.Unlock()
	switch {
	case last:
		p.moved()
	case first && toCopy && part < longPart: // what a wake-up takes matters
		p.queue.route.device.Expect(staging.In)
	}
}

// moved is called when the transport has settled the whole chunk, perhaps while it holds locks of its own: nothing that is called
// here may submit.
func (p *chunk) moved() {
	if p.queue.route.opcode == Write {
		p.end()
	} else {
		p.copy(p.land)
	}
}

// land settles the bytes of a READ that have arrived in the lease. They are on the device now, but for shares with an error.
func (p *chunk) land() {
	for i := range p.shares {
		s := &p.shares[i]
		switch {
		case s.arrived == 0:
		case s.complete():
			p.parent.owner.settle(s.task, s.arrived, s.err)
		default:
			p.parent.owner.settle(s.task, s.arrived, ErrPartFailed)
		}
	}
	p.end()
}

// end releases the lease, and lets the queue go on.
func (p *chunk) end() {
	q := p.queue
	p.lease.Release()
	q.mu.Lock()
	q.underWay -= p.bytes
	q.mu.Unlock()
	q.pump()
	q.stager.chunks.Done()
}
