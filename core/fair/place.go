package fair

import (
	"container/list"
	"sync/atomic"
	"time"
)

// Rank says how readily a holding gives way. Lower ranks go first.
type Rank int32

// Ranks of a holding. One starts as Silent.
const (
	Silent Rank = iota // its peer has not sent a valid request yet
	Idle               // its peer has no request open, and enters again when it needs to
	Spared             // its peer has no request open, and may fail when its holding ends
	Busy               // it serves a request, and does not give way

	gone // it has left, or was evicted
)

// Place is a holding of units. Its methods may be called from any goroutine.
type Place struct {
	gate    *Gate
	node    *node
	evict   func()
	element *list.Element // in the node's places, nil for a holding that never gives way; the gate's lock guards it
	units   int64         // the gate's lock guards it

	rank  atomic.Int32
	since atomic.Int64 // when it got its rank: time since start

	seenRank Rank // of the search for a victim, by the gate's lock
}

var start = time.Now()

// SetRank changes the rank, without waiting for any other goroutine. It returns false when the holding is gone: it was
// evicted or has left. A holding whose rank was set to Busy is not evicted until the rank is lowered.
func (p *Place) SetRank(r Rank) bool {
	for {
		before := p.rank.Load()
		if Rank(before) == gone {
			return false
		}
		p.since.Store(int64(time.Since(start)))
		if p.rank.CompareAndSwap(before, int32(r)) {
			return true
		}
	}
}

// Resize changes how many units the holding has, to 1 or more. More units are refused where the address may not have them; no other holding
// gives way to them. The error is a *Refusal, and the holding is as before.
func (p *Place) Resize(units int64) error {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	units = max(units, 1)
	more := units - p.units
	if Rank(p.rank.Load()) == gone {
		return nil
	}
	if more > 0 {
		if full := p.node.full(more); full != nil {
			p.gate.refused++
			return refusal(p.node.key.Addr(), full, p.gate.root)
		}
	}
	p.units = units
	p.node.grow(more)
	return nil
}

// Leave gives the units back. It does nothing when the holding is gone already.
func (p *Place) Leave() {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	if Rank(p.rank.Swap(int32(gone))) != gone {
		p.release()
	}
}

// claim ends a holding that a search has found, unless its rank has changed since.
func (p *Place) claim() bool {
	if !p.rank.CompareAndSwap(int32(p.seenRank), int32(gone)) {
		return false
	}
	p.release()
	return true
}

// release takes a holding that is gone out of the count. The gate's lock is held.
func (p *Place) release() {
	if p.element != nil {
		p.node.places.Remove(p.element)
	}
	p.node.grow(-p.units)
	p.node.prune()
}
