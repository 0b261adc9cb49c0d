package core

import (
	"kvferry/core/layout"
	"kvferry/core/staging"
)

// A transfer of a plan whose local memory is on a device passes through staging blocks in chunks as other works do, with its runs
// packed:
//
//  1. cutParts cuts parts of its patterns, as many as the lease has room for. The bytes of a part lie together in the lease. The
//     side that does it at less cost puts them in another order: see order.
//  2. Each part is a strided move of the chunk's job. So the device gathers the runs of a WRITE, and scatters those of a READ, by
//     the means that the planner of core/staging finds best for them.
//  3. The transport gets the chunk as a transfer of a plan of its own, from the lease or into it. Runs that follow each other at the
//     peer, in one of its buffers, are one run there, whatever their places on the device are.
//  4. A READ of which a part has not arrived is not copied to the device at all: the transfer fails.

// mostParts bounds the parts of a chunk: one may be a run.
const mostParts = 4096

// cutParts takes parts of patterns, as many as the lease has room for.
func (p *chunk) cutParts(c *stagedCursor) {
	op := p.queue.route.opcode
	here := layout.Source
	if op == Read {
		here = layout.Destination
	}
	var parts []layout.Pattern
	var request Request
	most := int(p.queue.route.device.MostRuns(false))
	for end, runs := uint64(0), 0; c.left > 0 && runs < most && len(parts) < mostParts; {
		next := c.parts.Run()
		local, remote := Sides(op, &next)
		at := p.queue.route.device.Place(end, local.Base, local.Run)
		if at >= p.lease.Length {
			break
		}
		if request.Length == 0 {
			request = c.work.Tasks[c.task].Request
			request.Local, request.Remote, request.Length = p.lease.Addr+uintptr(at), uint64(remote.Base), 0
		}
		part := c.parts.Cut(min(p.lease.Length-at, bytesOf(most-runs, next.Run)), nil)
		part.Sort(p.order(here, &part))
		runs += p.addMove(op, &part, p.lease.Addr+uintptr(at))
		part = part.Packed(here, uint64(p.lease.Addr)+at)
		if merged := part.Merged(); p.isWithinBuffers(op, &merged) {
			part = merged
		}
		parts = append(parts, part)
		request.Length += part.Bytes()
		end = at + part.Bytes()
		c.advance(part.Bytes())
	}
	p.work.Transfer = layout.Listed(parts)
	p.addShare(c.task, request.Length, request)
}

// order is the side whose addresses give the bytes of a part their order: there its runs are longest, and the other side changes
// the order. That is the peer where its processor or a kernel copies the runs, and each of them would cost our device a copy.
func (p *chunk) order(here layout.Side, part *layout.Pattern) layout.Side {
	op := p.queue.route.opcode
	if !p.queue.route.device.CopiesOneByOne() || runsOf(op, *part, here) == runsOf(op, *part, here.Other()) {
		return here.Other()
	}
	_, remote := Sides(op, part)
	d := p.work.Segment.Descriptor()
	buffer, held := d.Contains(uint64(remote.Base), remote.Run)
	if !held || d.Hello == 0 || buffer.CopiesEachRun() { // Mooncake takes no patterns
		return here.Other()
	}
	return here
}

// runsOf is how many runs a part has on our device in the order of a side.
func runsOf(op Opcode, part layout.Pattern, by layout.Side) uint64 {
	part.Sort(by)
	local, _ := Sides(op, &part)
	local.Merge()
	return local.Bytes() / local.Run
}

// addMove adds the move of a part whose bytes lie together from an address in the lease on, and returns how many runs it has.
func (p *chunk) addMove(op Opcode, part *layout.Pattern, block uintptr) (runs int) {
	local, _ := Sides(op, part)
	local.Merge()
	move := staging.Move{Device: local.Base, Block: block, Length: local.Bytes()}
	if local.Count > 0 {
		move.Runs = &local
	}
	p.moves = append(p.moves, move)
	return int(local.Bytes() / local.Run)
}

// isWithinBuffers reports whether the peer has each run in one of its buffers, as its descriptor shows them. One run of a request
// may not lie in two.
func (p *chunk) isWithinBuffers(op Opcode, part *layout.Pattern) bool {
	d := p.work.Segment.Descriptor()
	_, remote := Sides(op, part)
	return remote.Within(func(addr uintptr, length uint64) bool {
		_, held := d.Contains(uint64(addr), length)
		return held
	})
}

// bytesOf is how many bytes so many runs have; as many as there are numbers for, if that is more.
func bytesOf(runs int, run uint64) uint64 {
	if n := uint64(runs); run <= 1<<63/n {
		return n * run
	}
	return 1 << 63
}
