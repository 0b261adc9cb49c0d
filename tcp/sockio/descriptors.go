package sockio

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Descriptors are the file descriptors that connections of one kind may take, of those of the process. All engines of a process
// share them: one that finds none left has another one end an idle connection (MakeRoom). A nil Descriptors has no limit. Any
// goroutine may call the methods.
type Descriptors struct {
	limit int64
	taken atomic.Int64

	mu      sync.Mutex
	sharers map[Sharer]struct{}
}

// Sharer is what an engine has of the connections. Its methods may be called from any goroutine until Leave has returned, and a
// little longer.
type Sharer interface {
	// Connections is how many it has, and how many of those are to end soon.
	Connections() (all, ending int)
	// GiveWay has an idle connection end soon. It returns false where there is none.
	GiveWay() bool
}

// Join has an engine share the descriptors until Leave.
func (d *Descriptors) Join(s Sharer) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sharers == nil {
		d.sharers = map[Sharer]struct{}{}
	}
	d.sharers[s] = struct{}{}
}

// Leave undoes Join.
func (d *Descriptors) Leave(s Sharer) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sharers, s)
}

// MakeRoom has one idle connection end soon, of the engine that has most connections before others, unless one is about to end
// anyway. The caller tries to Take again in a while.
func (d *Descriptors) MakeRoom() {
	type sharer struct {
		Sharer
		all int
	}
	d.mu.Lock()
	sharers := make([]sharer, 0, len(d.sharers))
	for s := range d.sharers {
		sharers = append(sharers, sharer{Sharer: s})
	}
	d.mu.Unlock()
	for i := range sharers {
		all, ending := sharers[i].Connections()
		if ending > 0 {
			return
		}
		sharers[i].all = all
	}
	slices.SortFunc(sharers, func(a, b sharer) int { return b.all - a.all })
	for _, s := range sharers {
		if s.GiveWay() {
			return
		}
	}
}

// NewDescriptors allows so many descriptors.
func NewDescriptors(limit int) *Descriptors { return &Descriptors{limit: int64(limit)} }

// PerConnection is how many descriptors a connection takes at most: the socket, and for a moment as it is made a second one for it
// (duplicate), or the pidfd of a process on this host.
const PerConnection = 2

// Connections is how many connections there are descriptors for.
func (d *Descriptors) Connections() int { return int(max(1, d.limit/PerConnection)) }

// HasRoom reports whether so many descriptors are left.
func (d *Descriptors) HasRoom(n int) bool { return d == nil || d.taken.Load()+int64(n) <= d.limit }

// Take claims descriptors. It returns false where there are not as many left.
func (d *Descriptors) Take(n int) bool {
	if d == nil {
		return true
	}
	if d.taken.Add(int64(n)) > d.limit {
		d.taken.Add(int64(-n))
		return false
	}
	return true
}

// Give returns descriptors.
func (d *Descriptors) Give(n int) {
	if d != nil {
		d.taken.Add(int64(-n))
	}
}
