package client

import (
	"slices"

	"kvferry/core"
	"kvferry/core/hostmem"
)

// However many transfers wait for pages that never come, others to the same peer must go on. Each carrier that waits is overtaken
// (lane_stuck.go), but not without end. As long as one is:
//
//  1. mayTouch lets one carrier at a time take pieces whose memory may have to be brought in, and none once mostOvertaken are
//     overtaken. It sets other such works aside, out of the way of those that go on. What is in memory goes on in any case.
//  2. When that carrier takes more, it looks at what was set aside, at each of it once. When it takes no such piece, and when any
//     carrier is overtaken or has ended, the others look at all of it.

// overtakenPerLane bounds the carriers that are overtaken: so many for each lane that there may be. Before the first one is
// overtaken, its work may have come to all lanes.
const overtakenPerLane = 4

func (p *peer) mostOvertaken() int { return overtakenPerLane * p.config.LanesPerPeer }

// aside is a piece that was set aside, with the rest of its work.
type aside struct {
	piece piece
	rest  *cursor // nil where nothing else of the work was queued
}

// mayTouch reports whether a carrier may take a piece just removed from the queue. Otherwise it is to be set aside. The lock is held.
func (p *peer) mayTouch(c carrier, next *piece) bool {
	if len(p.heldUp) == 0 || next.isThere(hostmem.Now()) {
		return true
	}
	if (p.touching == nil || p.touching == c) && len(p.overtaken) < p.mostOvertaken() {
		p.touching = c
		return true
	}
	return false
}

// setAside sets a piece aside that was just removed from the queue, and the rest of its work, if the piece was cut from there. mine
// is what next was called with. The bytes still count as queued. The lock is held.
func (p *peer) setAside(next piece, mine func(*cursor) bool) {
	a := aside{piece: next}
	at := len(p.cursors) - 1 // where unset has queued it
	if at < 0 || p.cursors[at].work != next.work {
		at = slices.IndexFunc(p.cursors, mine) // where next has cut the piece
	}
	if at >= 0 && p.cursors[at].work == next.work {
		a.rest = p.cursors[at]
		p.dropCursor(at)
	}
	p.aside = append(p.aside, a)
	p.queued += next.length
	if lane, isLane := p.touching.(pipelined); isLane {
		lane.wake() // it may have nothing to wait for any more, and not know of this work
	}
}

// lookAgain has so many looked at again of those that were set aside first, at most all that there are. It reports whether there are
// any. The lock is held.
func (p *peer) lookAgain(count int) bool {
	p.again = max(p.again, min(count, len(p.aside)))
	return p.again > 0
}

// unsetNext queues the next piece that is to be looked at again, and any before it of which nothing may be taken. The lock is held.
func (p *peer) unsetNext() {
	for heldUp := true; heldUp && p.again > 0; p.again-- {
		first := p.aside[0]
		p.aside[0] = aside{} // for the collector
		p.aside = p.aside[1:]
		p.unset(first)
		heldUp = p.isHeldUp(first.piece.work)
	}
}

// unset queues a piece again that was set aside: it is the next one. The lock is held.
func (p *peer) unset(a aside) {
	p.queued -= a.piece.length // requeue counts it
	p.requeue(a.piece)
	if a.rest != nil {
		p.cursors = append(p.cursors, a.rest)
	}
}

// mayBeOvertaken reports whether others may take over from a carrier that waits for a page. They may in any case from the one that was
// let touch memory: there was a place for it, which a lane that is renewed may have taken since. The lock is held.
func (p *peer) mayBeOvertaken(c carrier) bool {
	return p.touching == c || len(p.overtaken) < p.mostOvertaken()
}

// hasTouched is called when a carrier takes more. It reports whether it is the one that may have waited for a page, which comes to
// the first work that was set aside. The lock is held.
func (p *peer) hasTouched(c carrier) bool {
	if p.touching != c {
		return false
	}
	p.touching = nil
	p.lookAgain(1)
	return true
}

// endTouching is called when a carrier has taken what it wants. If it is no longer the one that may wait for a page, the other lanes
// are woken for what was set aside, since it need not be one for these works. The lock is held.
func (p *peer) endTouching(c carrier, was bool) {
	if !was || p.touching != nil || p.isEmpty() {
		return
	}
	p.lookAgain(len(p.aside))
	for _, lane := range p.listed().lanes {
		lane.wake()
	}
}

// isHeldUp reports whether nothing may be taken of a work: a carrier that was overtaken waits for a page of it. The lock is held.
func (p *peer) isHeldUp(w *core.Work) bool {
	for _, works := range p.heldUp {
		if slices.Contains(works, w) {
			return true
		}
	}
	return false
}
