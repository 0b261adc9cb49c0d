package client

import (
	"kvferry/core"
	"kvferry/core/layout"
	"kvferry/core/metadata"
)

// cursor cuts a work into pieces, one at a time, so that a batch of any size needs memory only for those in flight:
//
//  1. newCursor stands at the first task of the work.
//  2. cut takes the next piece: a part of a task, or a task and those that follow it without a gap (merge).
//  3. settleTask and settleRest end what is not to be sent at all.
type cursor struct {
	work *core.Work
	task int32  // where the next piece begins
	skip uint64 // bytes of that task before it
	left uint64 // bytes not cut yet

	parts *layout.Parts // of a transfer of a plan, instead of task and skip; nil otherwise. See strided.go
}

// short reports whether the work has bytes for a moment only.
func (c *cursor) short() bool { return c.work.Bytes <= shortWork }

func newCursor(w *core.Work) *cursor {
	c := &cursor{work: w, task: w.Head, left: w.Bytes}
	if w.Transfer != nil {
		c.parts = w.Transfer.Parts()
	}
	return c
}

// cut takes the next piece, of at most limit bytes. Tasks are merged as long as they are adjacent on both sides
// and lie in one buffer of the peer, as its descriptor shows it.
func (c *cursor) cut(limit uint64, d *metadata.Descriptor) piece {
	task := &c.work.Tasks[c.task]
	p := piece{
		work: c.work, first: c.task, skip: c.skip, op: task.Opcode,
		local: task.Local + uintptr(c.skip), remote: task.Remote + c.skip,
		length: min(task.Length-c.skip, limit),
	}
	if c.skip+p.length < task.Length {
		c.skip += p.length
	} else {
		c.task, c.skip = task.Next, 0
		c.merge(&p, limit, d)
	}
	c.left -= p.length
	return p
}

// merge extends a piece over the whole tasks that follow it without a gap.
func (c *cursor) merge(p *piece, limit uint64, d *metadata.Descriptor) {
	var room uint64 // up to the end of the buffer of the peer
	for c.task >= 0 {
		next := &c.work.Tasks[c.task]
		adjacent := next.Opcode == p.op && next.Local == p.local+uintptr(p.length) && next.Remote == p.remote+p.length
		if !adjacent || next.Length > limit-p.length {
			return
		}
		if room == 0 {
			buffer, ok := d.Contains(p.remote, p.length)
			if !ok {
				return
			}
			room = buffer.Addr + buffer.Length - p.remote
		}
		if p.length+next.Length > room {
			return
		}
		p.length += next.Length
		p.merged = true
		c.task = next.Next
	}
}

// settleTask ends what is not cut yet of the task in which the next piece begins, and returns how many bytes that is.
func (c *cursor) settleTask(err error) uint64 {
	if c.parts != nil {
		rest := c.left
		c.settleRest(err)
		return rest
	}
	task := &c.work.Tasks[c.task]
	rest := task.Length - c.skip
	c.work.Settle(c.task, c.skip, rest, err)
	c.task, c.skip = task.Next, 0
	c.left -= rest
	return rest
}

// settleRest ends what is not cut yet.
func (c *cursor) settleRest(err error) {
	c.work.Settle(c.task, c.skip, c.left, err)
	c.left = 0
}
