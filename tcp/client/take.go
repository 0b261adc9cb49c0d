package client

import (
	"slices"

	"kvferry/core"
	"kvferry/core/metadata"
)

// What a carrier gets from the queue:
//
//  1. take gives pieces until the carrier has enough.
//  2. mayTakeFrom says which works the carrier may take from, and next cuts a piece from the first of them.
//     mayTouch lets it be taken where carriers wait for pages (cautious.go).
//  3. A piece that the owner refuses by its descriptor waits for a new descriptor (revalidate.go). A WRITE to a range that a
//     former connection may still write to waits as well (blocked.go).

// take: see source.
func (p *peer) take(c carrier, to destination, taken []piece, pieces int, bytes uint64) []piece {
	p.mu.Lock()
	defer p.mu.Unlock()
	bytes = min(bytes, p.shareLeft(c))
	if bytes == 0 {
		return taken
	}
	mine := p.notHeldUp(p.mayTakeFrom(c))
	d := p.segment.Descriptor()
	if to.owner != nil && to.owner.Identity != d.Identity {
		c.quit(errOutdated)
		return taken
	}
	defer p.endTouching(c, p.hasTouched(c))
	limit := uint64(p.config.SliceSize)
	if p.spreads() {
		limit = min(limit, spreadSize)
	}
	if !p.pipelined(d) {
		limit = oneShotSize
	}
	checked := p.checked || !p.acknowledges(d)
	for got := uint64(0); pieces > 0 && got < bytes && len(p.unverified) < maxUnverified; {
		next, ok := p.next(limit, d, to, mine, checked || d.IsRestricted())
		if !ok {
			if p.touching == c && p.lookAgain(1) {
				continue
			}
			break
		}
		if err := next.work.Aborted(); err != nil {
			next.settle(err)
			continue
		}
		if isRefused(d, &next, checked) {
			p.revalidate(next)
			continue
		}
		if to.owner != nil && !p.mayGoTo(to, &next) {
			continue
		}
		if next.isRegular() && to.runs == 0 {
			next.split(p.requeue)
			continue
		}
		if next.strided != nil && to.runs == 0 {
			next.settle(p.notStrided(&next, d))
			continue
		}
		if !p.mayTouch(c, &next) {
			p.setAside(next, mine)
			continue
		}
		if next.isPacked() {
			bytes = min(bytes, packBytes)
		}
		taken = append(taken, next)
		pieces--
		got += next.length
	}
	return taken
}

// mayTakeFrom says which works a carrier may take from. Short works are left to the reserved lane, and long works to the others.
// The lock is held.
func (p *peer) mayTakeFrom(c carrier) func(*cursor) bool {
	switch reserved := p.reservedLane(); {
	case reserved != nil && carrier(reserved) == c:
		return (*cursor).short
	case reserved != nil && reserved.load() <= busyBytes:
		return func(work *cursor) bool { return !work.short() }
	}
	return func(*cursor) bool { return true }
}

// notHeldUp is mine without works that are held up. The lock is held.
func (p *peer) notHeldUp(mine func(*cursor) bool) func(*cursor) bool {
	if len(p.heldUp) == 0 {
		return mine
	}
	return func(c *cursor) bool { return !p.isHeldUp(c.work) && mine(c) }
}

// next removes a piece from the queue, of the first work that mine allows. The lock is held.
func (p *peer) next(limit uint64, d *metadata.Descriptor, to destination, mine func(*cursor) bool, asked bool) (piece, bool) {
	p.unsetNext()
	for at := len(p.returned) - 1; at >= 0; at-- {
		if next := p.returned[at]; !p.isHeldUp(next.work) {
			p.returned = slices.Delete(p.returned, at, at+1)
			p.queued -= next.length
			return next, true
		}
	}
	for len(p.cursors) > 0 {
		at := slices.IndexFunc(p.cursors, mine)
		if at < 0 {
			break
		}
		c := p.cursors[at]
		if err := c.work.Aborted(); err != nil {
			p.queued -= c.left
			c.settleRest(err)
			p.dropCursor(at)
			continue
		}
		if at == 0 && p.turn >= turnSize && len(p.cursors) > 1 && !c.work.Staged {
			p.dropCursor(0)
			p.cursors = append(p.cursors, c)
			continue
		}
		if c.work.WillFail(c.task) {
			p.queued -= c.settleTask(core.ErrPartFailed)
			p.dropIfCut(at)
			continue
		}
		next := c.cutFor(to, limit, d, asked)
		if at == 0 {
			p.turn += next.length
		}
		p.queued -= next.length
		p.dropIfCut(at)
		return next, true
	}
	return piece{}, false
}

// dropIfCut drops a cursor that has nothing left.
func (p *peer) dropIfCut(at int) {
	if p.cursors[at].left == 0 {
		p.dropCursor(at)
	}
}

func (p *peer) dropCursor(at int) {
	if at > 0 {
		p.cursors = slices.Delete(p.cursors, at, at+1)
		return
	}
	p.cursors[0] = nil
	p.cursors = p.cursors[1:]
	p.turn = 0
}

// hasShort reports whether a short work is queued, or something that is to be sent again. The lock is held.
func (p *peer) hasShort() bool {
	return len(p.returned) > 0 || p.again > 0 || slices.ContainsFunc(p.cursors, (*cursor).short)
}

// hasQueued: see source.
func (p *peer) hasQueued() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.isEmpty()
}
