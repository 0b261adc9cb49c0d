package client

import (
	"slices"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/metadata"
	"kvferry/tcp/wire"
)

// piece is a byte range of a work that travels as one request: a part of a large task, a task, or several tasks that
// are adjacent on both sides.
type piece struct {
	work   *core.Work
	first  int32  // the task in which it begins
	skip   uint64 // bytes of that task before it
	op     core.Opcode
	local  uintptr
	remote uint64
	length uint64

	end      uint64 // position behind its last byte in the stream of the lane that sends it
	fatal    error  // why it is not to be tried again
	breaks   int32  // connections that broke under it
	refusals int32  // how often the peer refused its range
	round    int32  // of the peer's descriptor, when the piece became doubtful
	merged   bool   // spans several tasks

	// blocked is since when it waits for a former connection to be over, by clock.Now; 0 while it does not.
	// See quarantine.
	blocked int64

	touched hostmem.Time // when a READ's memory was looked at and had been touched within the last second; 0 for not
	cold    bool         // a READ into memory that may have to come first: no waiter receives it

	byAddress bool // sent without its payload
	plain     bool // not to be sent by address: it was out of reach
}

// opcodeOf is the opcode of a request as it is sent.
func opcodeOf(op core.Opcode) wire.Opcode {
	if op == core.Write {
		return wire.Write
	}
	return wire.Read
}

// settle ends the piece; see core.Work.Settle.
func (p *piece) settle(err error) { p.work.Settle(p.first, p.skip, p.length, err) }

// frame is the length of what is sent of the piece, its header included.
func (p *piece) frame() uint64 {
	if p.op == core.Write && !p.byAddress {
		return wire.HeaderSize + p.length
	}
	return wire.HeaderSize
}

// answer is the length of what the peer answers if all is well.
func (p *piece) answer() uint64 {
	switch {
	case p.op == core.Write:
		return wire.StatusSize
	case p.byAddress:
		return wire.StatusSize + wire.GrantSize
	}
	return wire.StatusSize + p.length
}

// unmoved reports whether the piece is not done although the peer has answered it well.
func (p *piece) unmoved() bool { return p.byAddress && (p.plain || p.op == core.Read) }

// split calls f with the piece's share of each task.
func (p *piece) split(f func(piece)) {
	part := *p
	part.merged = false
	for left, i := p.length, p.first; left > 0; i = p.work.Tasks[i].Next {
		task := &p.work.Tasks[i]
		part.first = i
		part.local, part.remote = task.Local+uintptr(part.skip), task.Remote+part.skip
		part.length = min(left, task.Length-part.skip)
		f(part)
		left -= part.length
		part.skip = 0
	}
}

// settleAborted settles the pieces of works that were given up, and returns the others, and the bytes of those settled.
func settleAborted(held []piece) (kept []piece, settled uint64) {
	kept = slices.DeleteFunc(held, func(h piece) bool {
		cause := h.work.Aborted()
		if cause != nil {
			settled += h.length
			h.settle(cause)
		}
		return cause != nil
	})
	return kept, settled
}

// cursor cuts a work into pieces, one at a time, so that a batch of any size needs memory only for those in flight.
type cursor struct {
	work *core.Work
	task int32  // where the next piece begins
	skip uint64 // bytes of that task before it
	left uint64 // bytes not cut yet
}

// short reports whether the work has bytes for a moment only.
func (c *cursor) short() bool { return c.work.Bytes <= shortWork }

func newCursor(w *core.Work) *cursor { return &cursor{work: w, task: w.Head, left: w.Bytes} }

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
