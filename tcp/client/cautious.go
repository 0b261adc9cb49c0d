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
//     overtaken. It sets other such works aside. What is in memory goes on in any case.
//  2. The works are looked at again when that carrier takes more, and when any carrier is overtaken or has ended.

// overtakenPerLane bounds the carriers that are overtaken: so many for each lane that there may be. Before the first one is
// overtaken, its work may have come to all lanes.
const overtakenPerLane = 4

func (p *peer) mostOvertaken() int { return overtakenPerLane * p.config.LanesPerPeer }

// mayTouch reports whether a carrier may take a piece just removed from the queue. Otherwise the piece is queued again, and its work
// is set aside. The lock is held.
func (p *peer) mayTouch(c carrier, next *piece) bool {
	if len(p.heldUp) == 0 || next.isThere(hostmem.Now()) {
		return true
	}
	if (p.touching == nil || p.touching == c) && len(p.overtaken) < p.mostOvertaken() {
		p.touching = c
		return true
	}
	p.setAside = append(p.setAside, next.work)
	p.requeue(*next)
	if lane, isLane := p.touching.(pipelined); isLane {
		lane.wake() // it may have nothing to wait for any more, and not know of this work
	}
	return false
}

// mayBeOvertaken reports whether others may take over from a carrier that waits for a page. They may in any case from the one that was
// let touch memory: there was a place for it, which a lane that is renewed may have taken since. The lock is held.
func (p *peer) mayBeOvertaken(c carrier) bool {
	return p.touching == c || len(p.overtaken) < p.mostOvertaken()
}

// hasTouched has the works looked at again that were set aside because of a carrier, if it is this one: it takes more, or ends. Other
// lanes are woken, since it need not be one for these works. The lock is held.
func (p *peer) hasTouched(c carrier) {
	if p.touching != c {
		return
	}
	p.touching = nil
	if len(p.setAside) == 0 {
		return
	}
	p.setAside = nil
	for _, lane := range p.listed().lanes {
		lane.wake()
	}
}

// isHeldUp reports whether nothing may be taken of a work: a carrier that was overtaken waits for a page of it, or it was set
// aside. The lock is held.
func (p *peer) isHeldUp(w *core.Work) bool {
	if slices.Contains(p.setAside, w) {
		return true
	}
	for _, works := range p.heldUp {
		if slices.Contains(works, w) {
			return true
		}
	}
	return false
}
