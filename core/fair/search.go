package fair

import "time"

// search looks for the holding that gives way to an address.
type search struct {
	own   *node         // the address; nil for all
	grace time.Duration // of its holdings
	now   time.Duration // since start
	retry time.Duration // when the first of its holdings comes out of its grace, from now; 0: none is in it
}

// victim is the holding that gives way to units of n, which is the address or its network; nil where none does.
func (s *search) victim(n *node, units int64) *Place {
	if units > n.most() {
		return nil
	}
	if n.held+units > n.most() {
		return s.weakest(n)
	}
	return s.pick(n.parent, func(other *node) bool { return other == n || other.held >= n.held+units })
}

// pick is the holding that gives way first among those of eligible children of a node, or nil.
func (s *search) pick(n *node, eligible func(*node) bool) *Place {
	var largest *node
	for _, c := range n.children {
		if eligible(c) && (largest == nil || c.held > largest.held) {
			largest = c
		}
	}
	if largest == nil {
		return nil
	}
	count := int64(len(n.children))
	if equal := (n.limits.Limit + count - 1) / count; largest.held > equal {
		if p := s.weakest(largest); p != nil {
			return p
		}
	}
	var weakest *Place
	for _, c := range n.children {
		if !eligible(c) {
			continue
		}
		if p := s.weakest(c); p != nil && (weakest == nil || p.before(weakest)) {
			weakest = p
		}
	}
	return weakest
}

// weakest is the holding of a node that gives way first, or nil.
func (s *search) weakest(n *node) *Place {
	if n.children != nil {
		return s.pick(n, func(*node) bool { return true })
	}
	var weakest *Place
	for e := n.places.Front(); e != nil; e = e.Next() {
		p := e.Value.(*Place)
		if s.givesWay(p) && (weakest == nil || p.before(weakest)) {
			weakest = p
		}
		if weakest != nil && weakest.seenRank == Silent {
			break // the places are in the order of Enter, which is the order of the silent ones' ages
		}
	}
	return weakest
}

// givesWay notes the rank of a holding, and says whether it may be evicted.
func (s *search) givesWay(p *Place) bool {
	p.seenRank = Rank(p.rank.Load())
	if p.seenRank >= Busy {
		return false
	}
	if s.own != nil && p.node != s.own || p.seenRank == Idle {
		return true
	}
	left := s.grace - (s.now - time.Duration(p.since.Load()))
	if left <= 0 {
		return true
	}
	if s.retry == 0 || left < s.retry {
		s.retry = left
	}
	return false
}

// before says whether a holding gives way before another. Both have been searched.
func (p *Place) before(other *Place) bool {
	switch {
	case p.seenRank != other.seenRank:
		return p.seenRank < other.seenRank
	case p.node != other.node && p.node.held != other.node.held:
		return p.node.held > other.node.held
	}
	return p.since.Load() < other.since.Load()
}
