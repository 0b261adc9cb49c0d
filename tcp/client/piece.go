package client

import (
	"slices"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/wire"
)

// piece is a byte range of a work that travels as one request: a part of a large task, a whole task, or several tasks that are
// adjacent on both sides.
//
//  1. A cursor cuts it (cursor.go), and a carrier takes it.
//  2. frame is what the carrier sends of it, and answer what the peer sends back.
//  3. settle ends it. Or it is queued again: whole, or split into the shares of its tasks (ended.go, revalidate.go).
//  4. settleAborted ends the pieces of a work that was given up, where they wait.
type piece struct {
	work   *core.Work
	skip   uint64 // bytes of its first task before it
	local  uintptr
	remote uint64
	length uint64
	first  int32 // the task in which it begins
	step   int32 // in the record of its batch, once a carrier has taken it; 0 for none
	op     core.Opcode

	strided   *strided // what it moves instead of a range; nil for a range. See strided.go
	merged    bool     // spans several tasks
	byAddress bool     // sent without its payload
	plain     bool     // not to be sent by address: it was out of reach
	cold      bool     // a READ into memory that may have to be brought in first: a goroutine that assists leaves it alone
	forbidden bool     // the peer's last refusal said that peers may not do that with the range

	breaks   int32  // connections that broke under it
	refusals int32  // how often the peer refused its range
	round    int32  // of the peer's descriptor, when the piece became unverified
	end      uint64 // position behind its last byte in the stream of the lane that sends it
	fatal    error  // why giveBack does not send it again: it fails, or each of its tasks is tried by itself; nil: it may be sent

	// blocked is since when it waits for a former connection to be over, by clock.Now; 0 while it does not.
	// See blocked.go.
	blocked int64

	touched hostmem.Time // when a READ's memory was looked at and had been touched within the last second; 0 for not
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
		return p.header() + p.length
	}
	return p.header()
}

// header is the length of its header.
func (p *piece) header() uint64 {
	if p.strided != nil {
		return wire.HeaderSize + uint64(wire.StridedBody(p.strided.axes))
	}
	return wire.HeaderSize
}

// localRange is the smallest range that holds all of its local memory.
func (p *piece) localRange() core.Range {
	if p.strided != nil {
		return p.strided.local
	}
	return core.Range{Addr: p.local, Length: p.length}
}

// remoteRange is the smallest range that holds all of its memory at the peer.
func (p *piece) remoteRange() (addr, length uint64) {
	if p.strided != nil {
		return uint64(p.strided.remote.Addr), p.strided.remote.Length
	}
	return p.remote, p.length
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
	if p.work.Transfer != nil {
		f(*p)
		return
	}
	part := *p
	part.merged, part.strided = false, nil
	for left, i := p.length, p.first; left > 0; i = p.work.Tasks[i].Next {
		task := &p.work.Tasks[i]
		part.first = i
		part.local, part.remote = task.Local+uintptr(part.skip), task.Remote+part.skip
		part.length = min(left, task.Length-part.skip)
		part.useKey()
		f(part)
		left -= part.length
		part.skip = 0
	}
}

// settleAborted settles the pieces of works that were given up, and returns the others, and the bytes of those settled.
func settleAborted(held []piece) (kept []piece, settled uint64) {
	kept = slices.DeleteFunc(held, func(piece piece) bool {
		cause := piece.work.Aborted()
		if cause != nil {
			settled += piece.length
			piece.settle(cause)
		}
		return cause != nil
	})
	return kept, settled
}
