package core

import (
	"sync"

	"kvferry/core/staging"
)

// chunk is a lease, and the part of a work that passes through it. It is the owner of the work that it makes of that
// for the transport.
type chunk struct {
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
func (q *stagedQueue) cut(c *stagedCursor, lease *staging.Lease) *chunk {
	p := &chunk{queue: q, parent: c.work, lease: lease}
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

// start does a chunk's first step.
func (p *chunk) start() {
	if p.queue.route.opcode == Write {
		p.copy(p.forward)
	} else {
		p.forward(nil)
	}
}

// copy has the shares copied that are complete on this side, and calls then on a goroutine of the device, also when there
// is nothing to copy.
func (p *chunk) copy(then func(error)) {
	route := p.queue.route
	for i := range p.shares {
		if s := &p.shares[i]; route.opcode == Write || s.complete() {
			p.job.Moves = append(p.job.Moves, s.move)
		}
	}
	p.job.Done = then
	route.device.Start(directionOf(route.opcode), &p.job)
}

// forward gives the chunk to the transport. Where others are under way, the thread that calls it waits for their copies,
// and is not to send.
func (p *chunk) forward(err error) {
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

func (p *chunk) aborted() error { return p.parent.Aborted() }

func (p *chunk) lost(task int32) bool { return p.parent.Lost(p.shares[task].task) }

// settle is told by the transport what became of a range. Bytes of a READ that arrived have a way to go yet.
func (p *chunk) settle(task int32, part uint64, err error) {
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

// moved is called when the transport has settled the whole chunk, perhaps under locks of the transport: nothing that
// follows here submits.
func (p *chunk) moved() {
	if p.queue.route.opcode == Write {
		p.end()
	} else {
		p.copy(p.land)
	}
}

// land settles the bytes of a READ that came into the lease: they are on the device now, or err tells why they are not.
func (p *chunk) land(err error) {
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
func (p *chunk) end() {
	q := p.queue
	p.lease.Release()
	q.mu.Lock()
	q.underWay -= p.work.Bytes
	q.mu.Unlock()
	q.pump()
	q.stager.busy.Done()
}
