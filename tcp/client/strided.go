package client

import (
	"errors"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/metadata"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// Transfers of plans (core/layout), which a peer gets as strided requests or as requests for ranges:
//
//  1. cutFor decides what a piece of such a transfer is: a part of a pattern, for an engine that takes strided requests and
//     where the runs are short, or a part of one run.
//  2. The peer says whether it has a part of a pattern, which may lie in several of its buffers. Its descriptor is not asked
//     (refusalBy).
//  3. A lane packs and unpacks the payload (lane_strided.go). It sends long runs as they are. A one-shot carrier has requests for
//     ranges only.

const (
	// mostStridedRun bounds the runs of strided requests, in bytes. Longer runs are sent straight from memory, and received
	// straight into it: that takes less than to copy them. On one host, runs that can be sent by address are longer.
	mostStridedRun = 4 << 10
	mostLocalRun   = minByAddress - 1
	// stridedBytes is the payload of a strided request: it stays in the processor's cache between the copy and the system call.
	stridedBytes = 128 << 10
)

// strided is what a piece moves that is a part of a pattern.
type strided struct {
	memory hostmem.Strided // of this process, with the longest runs that it has; without axes if the payload lies together there
	frame  wire.Strided
	axes   int        // of the frame
	local  core.Range // the smallest range that holds all of it, on each side
	remote core.Range // likewise
	direct bool       // a WRITE is sent straight from memory
	packed int        // of another WRITE: where its payload begins in the packed bytes of its lane
}

// cutFor is cut for a carrier that is connected to an engine.
func (c *cursor) cutFor(to destination, limit uint64, d *metadata.Descriptor, asked bool) piece {
	if c.parts == nil {
		whole := c.skip == 0
		p := c.cut(limit, d)
		if whole && c.skip == 0 {
			c.repeat(&p, to, limit, d, asked)
		}
		p.useKey()
		return p
	}
	op := c.work.Tasks[c.task].Opcode
	var part layout.Pattern
	if c.parts.Run().Run <= to.runs {
		part = c.parts.Cut(min(limit, stridedBytes), nil)
		c.sort(op, &part, d)
	} else {
		part = c.parts.CutRun(limit)
	}
	local, remote := core.Sides(op, &part)
	p := piece{work: c.work, first: c.task, op: op, local: local.Base, remote: uint64(remote.Base), length: part.Bytes()}
	if remote.Count > 0 {
		p.strided = newStrided(c.work, local, remote)
	}
	p.useKey()
	c.left -= p.length
	return p
}

// sort gives the bytes of a part the order of the source's addresses, where the source can then send them from where they are, and
// otherwise could not. What passes through staging blocks of this process has its order already, and an NPU is spared short runs.
func (c *cursor) sort(op core.Opcode, part *layout.Pattern, d *metadata.Descriptor) {
	if c.work.Staged || isSentDirectly(part) {
		return
	}
	if op == core.Write {
		if buffer, held := d.Contains(part.Destination, part.Run); held && buffer.CopiesEachRun() {
			return
		}
	}
	sorted := *part
	if sorted.Sort(layout.Source); isSentDirectly(&sorted) {
		*part = sorted
	}
}

// isSentDirectly reports whether the source need not pack the bytes of a part.
func isSentDirectly(part *layout.Pattern) bool {
	source, _ := core.Sides(core.Write, part)
	source.Merge()
	return source.Run >= sockio.MinDirectRun
}

// useKey makes a strided request of a piece whose work has the key of an offer: one without axes, if it moves a range.
func (p *piece) useKey() {
	if p.work.Key != (layout.Key{}) && (p.strided == nil || p.strided.axes == 0) {
		local := hostmem.Strided{Base: p.local, Run: p.length}
		remote := hostmem.Strided{Base: uintptr(p.remote), Run: p.length}
		p.strided = newStrided(p.work, local, remote)
	}
}

func newStrided(w *core.Work, local, remote hostmem.Strided) *strided {
	local.Merge()
	s := &strided{memory: local, axes: remote.Count, frame: wire.Strided{Key: wire.Key(w.Key), ID: w.ID, Run: remote.Run}}
	s.direct = local.Run >= sockio.MinDirectRun
	for i, a := range remote.Axes[:remote.Count] {
		s.frame.Axes[i] = wire.Axis(a)
	}
	s.local.Addr, s.local.Length = local.Bounds()
	s.remote.Addr, s.remote.Length = remote.Bounds()
	return s
}

// put writes the header of a piece.
func (s *strided) put(b []byte, p *piece) {
	wire.PutStrided(b, opcodeOf(p.op), p.remote, p.length, &s.frame, s.axes)
}

// isPacked reports whether the payload is packed before it is sent.
func (p *piece) isPacked() bool { return p.isSpread() && p.op == core.Write && !p.strided.direct }

// isScattered reports whether the payload is unpacked when it has come.
func (p *piece) isScattered() bool { return p.isSpread() && p.op == core.Read }

// isSpread reports whether the payload does not lie together in this process.
func (p *piece) isSpread() bool { return p.strided != nil && p.strided.memory.Count > 0 }

// errNoOffers is why a piece is not sent that has the key of an offer.
var errNoOffers = errors.New("offers need a connection that takes strided requests, as kvferry engines make them with MC_TCP_ENABLE_CONNECTION_POOL and version 2")
