// Package fair shares a limited resource, such as connections or bytes, between the addresses of peers. No address can take
// all of it, and an address that holds nothing yet finds room.
//
// Enter decides in this order:
//
//  1. The peer's address is found. IPv4 addresses share the limit. The addresses of an IPv6 network (/64) share it as one, since
//     one host may have all of them. A network may hold an eighth more than an address may, so that a host that takes its whole
//     share leaves something for newcomers of its network.
//  2. The units are taken if the address stays within its share, and if the part for newcomers stays free or the address
//     holds little enough to use it.
//  3. Otherwise another holding gives way: one of the address itself, or one of an address that holds as much or more. First
//     those of the largest holder if that has more than an equal part, then those of the lowest rank, then the oldest.
//  4. If none may give way, Enter returns a Refusal.
package fair

import (
	"cmp"
	"container/list"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Options are the limits of a Gate. Zero fields have defaults.
type Options struct {
	Limit     int64 // units that all addresses hold together; it must be 1 or more
	Share     int64 // units that one address holds at most; half of the limit. A network of IPv6 may hold an eighth more
	Newcomers int64 // units of the limit that only addresses with little take; an eighth of the limit
	Little    int64 // units that such an address holds at most, with those that it asks for; an eighth of Newcomers, at least 1

	// Grace is how long a holding that is not Idle is safe from an Enter of its own address, since its rank was set. So peers of
	// one address that come all at once can be served one after the other. 0: it gives way at once.
	Grace time.Duration
}

// complete fills in the defaults.
func (o Options) complete() Options {
	o.Limit = max(o.Limit, 1)
	o.Share = min(cmp.Or(o.Share, (o.Limit+1)/2), o.Limit)
	o.Newcomers = min(cmp.Or(o.Newcomers, o.Limit/8), o.Limit-1)
	o.Little = max(cmp.Or(o.Little, o.Newcomers/8), 1)
	return o
}

// ofNetwork are the limits of the addresses of one network.
func (o Options) ofNetwork() Options {
	limit := max(o.Share, min(o.Share+(o.Share+7)/8, o.Limit-o.Newcomers))
	return Options{Limit: limit, Share: o.Share, Newcomers: limit - o.Share}.complete()
}

// Gate counts the units that addresses hold. Its methods may be called from any goroutine.
type Gate struct {
	mu      sync.Mutex
	root    *node
	refused uint64
	evicted uint64
}

// New makes a gate that nobody holds units of.
func New(o Options) *Gate {
	root := &node{limits: o.complete(), children: map[netip.Prefix]*node{}}
	return &Gate{root: root}
}

// Stats are the counters of a gate.
type Stats struct {
	Held      int64  // units
	Addresses int    // that hold units; a network of IPv6 counts as one
	Refused   uint64 // calls of Enter and Resize that were refused so far
	Evicted   uint64 // holdings that gave way so far
}

// Stats returns the counters at one moment.
func (g *Gate) Stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Stats{Held: g.root.held, Addresses: len(g.root.children), Refused: g.refused, Evicted: g.evicted}
}

// Held is the number of units that are held.
func (g *Gate) Held() int64 { return g.Stats().Held }

// Refusal is the error for a peer that may not have more.
type Refusal struct {
	Addr  netip.Addr
	Held  int64 // units that the address holds
	Share int64 // units that it may hold
	Taken int64 // units that all addresses hold
	Limit int64 // units that there are

	Retry time.Duration // after which a holding of the address will give way, unless one ends before; 0: none will
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("%v holds %d of the %d that one address may, and %d of %d are taken", r.Addr, r.Held, r.Share, r.Taken, r.Limit)
}

// Enter takes units, 1 or more, for an address. The caller gives them back by Leave. A holding with evict may give way: the
// gate then calls evict once, in the Enter that takes the units over and before that returns. evict must end what the units
// stand for, soon. The zero address stands for the program itself: only the limit applies to it. The error is a *Refusal.
func (g *Gate) Enter(addr netip.Addr, units int64, evict func()) (*Place, error) {
	return g.enter(addr, units, evict, g.root.limits.Grace)
}

// Insist is Enter without a grace: also a new holding of the address gives way.
func (g *Gate) Insist(addr netip.Addr, units int64, evict func()) (*Place, error) {
	return g.enter(addr, units, evict, 0)
}

func (g *Gate) enter(addr netip.Addr, units int64, evict func(), grace time.Duration) (*Place, error) {
	g.mu.Lock()
	units = max(units, 1)
	victims, err := g.makeRoom(addr, units, grace)
	var place *Place
	if leaf := g.root.leaf(addr); err == nil {
		place = leaf.add(g, units, evict)
	} else {
		leaf.prune()
	}
	g.mu.Unlock()
	for _, v := range victims {
		v.evict()
	}
	if err != nil {
		return nil, err
	}
	return place, nil
}

// makeRoom claims holdings until an address may take units. Of one unit, one holding makes room; for more units, several may
// give way before it turns out that they are too few.
func (g *Gate) makeRoom(addr netip.Addr, units int64, grace time.Duration) (victims []*Place, err error) {
	for {
		leaf := g.root.leaf(addr)
		full := leaf.full(units)
		if full == nil {
			return victims, nil
		}
		s := search{own: leaf, grace: grace, now: time.Since(start)}
		victim := s.victim(full, units)
		if victim == nil {
			g.refused++
			r := refusal(addr, full, g.root)
			r.Retry = s.retry
			return victims, r
		}
		if victim.claim() {
			g.evicted++
			victims = append(victims, victim)
		}
	}
}

func refusal(addr netip.Addr, full, root *node) *Refusal {
	return &Refusal{Addr: addr, Held: full.held, Share: full.most(), Taken: root.held, Limit: root.limits.Limit}
}

// node is an address, a network of addresses, or the root. The gate's lock guards it.
type node struct {
	parent   *node // nil for the root
	key      netip.Prefix
	held     int64
	limits   Options                // for the children
	children map[netip.Prefix]*node // nil for an address
	places   list.List              // of *Place that may give way, in the order of Enter; of an address
}

// networkBits is the size of an IPv6 network that belongs to one host.
const networkBits = 64

// leaf finds the node of an address, and makes it where it is missing.
func (n *node) leaf(addr netip.Addr) *node {
	addr = addr.Unmap().WithZone("")
	whole, _ := addr.Prefix(addr.BitLen())
	if !addr.Is6() {
		return n.child(whole, false)
	}
	network, _ := addr.Prefix(networkBits)
	return n.child(network, true).child(whole, false)
}

func (n *node) child(key netip.Prefix, network bool) *node {
	c := n.children[key]
	if c != nil {
		return c
	}
	c = &node{parent: n, key: key}
	if network {
		c.limits = n.limits.ofNetwork()
		c.children = map[netip.Prefix]*node{}
	}
	n.children[key] = c
	return c
}

// prune forgets an address that holds nothing.
func (n *node) prune() {
	for ; n.parent != nil && n.held == 0 && n.places.Len() == 0 && len(n.children) == 0; n = n.parent {
		delete(n.parent.children, n.key)
	}
}

// full is the innermost of a leaf and its network that cannot take units; nil where both can.
func (n *node) full(units int64) *node {
	for ; n.parent != nil; n = n.parent {
		if !n.fits(units) {
			return n
		}
	}
	return nil
}

// fits says whether a child of a node may take units.
func (n *node) fits(units int64) bool {
	limits, after, mine := n.parent.limits, n.parent.held+units, n.held+units
	switch {
	case after > limits.Limit:
		return false
	case !n.key.IsValid(): // the program itself
		return true
	case mine > n.most():
		return false
	}
	return after <= limits.Limit-limits.Newcomers || mine <= limits.Little
}

// most is the number of units that a child of a node may hold.
func (n *node) most() int64 {
	switch {
	case !n.key.IsValid():
		return n.parent.limits.Limit // the program itself
	case n.children != nil:
		return n.limits.Limit // a network
	}
	return n.parent.limits.Share
}

// add notes units of a leaf.
func (n *node) add(g *Gate, units int64, evict func()) *Place {
	p := &Place{gate: g, node: n, units: units, evict: evict}
	p.SetRank(Silent)
	n.grow(units)
	if evict != nil {
		p.element = n.places.PushBack(p)
	}
	return p
}

// grow adds units to a node and those around it.
func (n *node) grow(units int64) {
	for ; n != nil; n = n.parent {
		n.held += units
	}
}

// AddrOf is the IP address in a network address; the zero address where it has none, as that of a Unix socket.
func AddrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case nil:
		return netip.Addr{}
	}
	at, _ := netip.ParseAddrPort(a.String())
	return at.Addr().Unmap().WithZone("")
}
