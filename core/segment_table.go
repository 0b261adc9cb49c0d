package core

import (
	"math"
	"sync"
	"sync/atomic"

	"kvferry/core/clock"
	"kvferry/core/metadata"
	"kvferry/core/metrics"
	"kvferry/core/status"
)

// segments are the peers' segments that an engine has opened, one for each name.
type segments struct {
	peers *metrics.Peers

	mu     sync.RWMutex
	byName map[string]*Segment
	byID   map[SegmentID]*Segment
}

// lastSegment is the id of the segment that was opened last in the process, by any engine. No id is used twice: an id of a closed
// engine never names a segment of another engine.
var lastSegment atomic.Int64

func newSegments(peers *metrics.Peers) *segments {
	return &segments{peers: peers, byName: map[string]*Segment{}, byID: map[SegmentID]*Segment{}}
}

func (t *segments) named(name string) *Segment {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byName[name]
}

func (t *segments) numbered(id SegmentID) *Segment {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

func (t *segments) all() []*Segment {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]*Segment, 0, len(t.byID))
	for _, s := range t.byID {
		all = append(all, s)
	}
	return all
}

// add returns the segment of that name. It makes one, with a new id, if there is none.
func (t *segments) add(name string, store metadata.Store, central bool, d *metadata.Descriptor) (*Segment, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byName[name]; s != nil {
		return s, nil
	}
	id := lastSegment.Add(1)
	if id > math.MaxInt32 {
		return nil, status.Errorf(status.Context, "segment %q: this process has opened as many segments as there are ids", name)
	}
	s := &Segment{ID: SegmentID(id), Name: name, store: store, central: central, counters: t.peers.Add(name, clock.Now())}
	s.descriptor.Store(d)
	s.confirm()
	t.byName[name], t.byID[s.ID] = s, s
	return s, nil
}

func (t *segments) remove(name string) *Segment {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byName[name]
	if s != nil {
		s.removed.Store(true)
		delete(t.byName, name)
		delete(t.byID, s.ID)
		t.peers.Remove(s.counters)
	}
	return s
}
