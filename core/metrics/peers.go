package metrics

import (
	"sync"
	"sync/atomic"
	"time"
)

// Path is how bytes get to a peer.
type Path int

// The paths.
const (
	TCP   Path = iota // over a connection
	Host              // copied from the memory of another process on the same host
	Local             // copied within the process
	paths
)

// Paths are all paths.
var Paths = [...]Path{TCP, Host, Local}

func (p Path) String() string { return [...]string{"tcp", "host", "local"}[p] }

// PeerCounter names a counter of a Peer.
type PeerCounter int

// The counters that have no argument. BytesOf, RequestsOf and FailuresOf name the others.
const (
	Retries      PeerCounter = iota // ranges that were queued again because their connection broke
	Refusals                        // requests that the peer, or as the target this engine, refused
	Connected                       // connections that came up
	Lost                            // connections that were lost; as the target, those that ended in an error
	Unreachable                     // attempts to connect that failed
	firstBytes                      // by operation and path
	firstRequest = firstBytes + 2*PeerCounter(paths)
	firstFailure = firstRequest + 2
	peerCounters = firstFailure + PeerCounter(reasons)
)

// BytesOf is the payload that has arrived.
func BytesOf(o Operation, p Path) PeerCounter {
	return firstBytes + PeerCounter(o)*PeerCounter(paths) + PeerCounter(p)
}

// RequestsOf is the requests that have completed.
func RequestsOf(o Operation) PeerCounter { return firstRequest + PeerCounter(o) }

// FailuresOf is the requests that have failed.
func FailuresOf(r Reason) PeerCounter { return firstFailure + PeerCounter(r) }

// Peer has the counters of one peer. Any goroutine may call its methods, and none waits.
type Peer struct {
	_      [cacheLine]byte
	counts [peerCounters]atomic.Uint64
	_      [cacheLine]byte

	name string
	used atomic.Int64 // see Peers; nanoseconds

	// Guarded by the lock of Peers.
	shown  bool       // by its name, and not among the other ones
	before PeerCounts // when it became one of the other ones
}

// PeerCounts are the counts of a Peer at one moment.
type PeerCounts [peerCounters]uint64

// Add adds to a counter.
func (p *Peer) Add(c PeerCounter, n uint64) { p.counts[c].Add(n) }

// AddAll adds to all counters.
func (p *Peer) AddAll(counts *PeerCounts) {
	for i, n := range counts {
		if n > 0 {
			p.counts[i].Add(n)
		}
	}
}

// Use notes that the peer is in use, at a time that only has to grow.
func (p *Peer) Use(now time.Duration) { p.used.Store(int64(now)) }

// Counts returns the counts so far.
func (p *Peer) Counts() (c PeerCounts) {
	for i := range p.counts {
		c[i] = p.counts[i].Load()
	}
	return c
}

// Bytes is the payload of an operation, whatever its path.
func (p *Peer) Bytes(o Operation) (n uint64) {
	for _, path := range Paths {
		n += p.counts[BytesOf(o, path)].Load()
	}
	return n
}

// Plus adds other counts.
func (c *PeerCounts) Plus(other *PeerCounts) {
	for i := range c {
		c[i] += other[i]
	}
}

// Bytes is the payload of an operation, whatever its path.
func (c *PeerCounts) Bytes(o Operation) (n uint64) {
	for _, path := range Paths {
		n += c[BytesOf(o, path)]
	}
	return n
}

func (c *PeerCounts) minus(other *PeerCounts) {
	for i := range c {
		c[i] -= other[i]
	}
}

// OwnMemory is the name of the engine's own memory among the peers.
const OwnMemory = "local"

// OtherPeers is the name of the peers that are not shown by their own names.
const OtherPeers = "other"

// forgetTime is how long a peer that is shown by its name is not in use, before a new one is shown in its place.
const forgetTime = 10 * time.Minute

// Peers are the peers of an engine in one role. At most so many are shown by their names as the limit says, the rest together as
// OtherPeers. A count that is shown never shrinks: a peer does not change from OtherPeers to its own name, and what the other
// peers had counted stays when they are removed. Any goroutine may call the methods.
type Peers struct {
	limit int

	mu     sync.Mutex
	all    []*Peer
	shown  int        // of all
	others bool       // there are or were other ones
	former PeerCounts // of other ones that were removed
}

// NewPeers makes an empty set. limit may be 0.
func NewPeers(limit int) *Peers { return &Peers{limit: limit} }

// Add makes the counters of a peer. now is as for Peer.Use.
func (s *Peers) Add(name string, now time.Duration) *Peer {
	p := &Peer{name: name}
	p.Use(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shown >= s.limit {
		s.hideOldest(now - forgetTime)
	}
	if p.shown = s.shown < s.limit; p.shown {
		s.shown++
	} else {
		s.others = true
	}
	s.all = append(s.all, p)
	return p
}

// hideOldest has the peer that was not in use for longest become one of the other ones, if that is since the given time. The lock
// is held.
func (s *Peers) hideOldest(since time.Duration) {
	var oldest *Peer
	for _, p := range s.all {
		if p.shown && (oldest == nil || p.used.Load() < oldest.used.Load()) {
			oldest = p
		}
	}
	if oldest == nil || time.Duration(oldest.used.Load()) > since {
		return
	}
	oldest.shown, oldest.before = false, oldest.Counts()
	s.shown--
	s.others = true
}

// Remove forgets a peer. What is counted for it later is not shown.
func (s *Peers) Remove(p *Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, one := range s.all {
		if one != p {
			continue
		}
		s.all = append(s.all[:i:i], s.all[i+1:]...)
		if p.shown {
			s.shown--
			return
		}
		counts := p.Counts()
		counts.minus(&p.before)
		s.former.Plus(&counts)
		return
	}
}

// NameOf is the name that a peer is shown by.
func (s *Peers) NameOf(p *Peer) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.shownAs()
}

func (p *Peer) shownAs() string {
	if p.shown {
		return p.name
	}
	return OtherPeers
}

// Shown is peers with one name.
type Shown struct {
	Name   string
	Counts PeerCounts
}

// Values returns the counts by the names that are shown, the oldest peer first, and OtherPeers last. extra, which may be nil, is
// what is to be added to those of a peer; it must not call the Peers.
func (s *Peers) Values(extra func(*Peer) PeerCounts) []Shown {
	s.mu.Lock()
	defer s.mu.Unlock()
	byName := make(map[string]int, len(s.all)) // a name may have been removed, and added again
	shown := make([]Shown, 0, s.shown+1)
	others := s.former
	for _, p := range s.all {
		counts := p.Counts()
		if extra != nil {
			more := extra(p)
			counts.Plus(&more)
		}
		if !p.shown {
			counts.minus(&p.before)
			others.Plus(&counts)
			continue
		}
		if at, ok := byName[p.name]; ok {
			shown[at].Counts.Plus(&counts)
			continue
		}
		byName[p.name] = len(shown)
		shown = append(shown, Shown{p.name, counts})
	}
	if s.others {
		shown = append(shown, Shown{OtherPeers, others})
	}
	return shown
}
