package core

import (
	"context"
	"slices"
	"sync"
	"time"

	"kvferry/core/metrics"
	"kvferry/core/staging"
	"kvferry/core/status"
)

// localTransport serves the engine's own segment, by copies within the process, with the checks and states of other transfers. The
// engine gives it work as it gives work to a Transport, and needs nothing else that a Transport has.
//
//  1. Submit copies small work of host memory at once, up to the first task whose pages are not all in memory. It queues the rest,
//     and other work, by the devices of its first task. There is a queue for each pair of devices, and one for host memory: a device
//     that hangs delays only its own copies. A queue has a goroutine while it is not empty. If a copy of host memory takes long,
//     because a page has to be loaded first, another goroutine goes on with the queue. What is given up while it is queued is settled
//     at once.
//  2. The tasks of a work are copied one after the other (local_work.go). The remote range of each is checked and pinned, as for a
//     request of a peer. If the range is on a device, the task moves to the queue of that device, with those behind
//     it that belong there, too.
//  3. The bytes are copied in steps. Between two steps an abort is noticed. A device copies from its own memory, and from that of
//     another one that it has access to, and small tasks share a step (local_direct.go). Other bytes of a device pass through
//     staging blocks. isDirect decides that (local_copy.go).
//  4. A transfer of a plan within host memory is copied by its patterns (local_transfer.go). With devices its runs are tasks.
type localTransport struct {
	segment *Segment
	memory  *Registry
	leases  localLeases

	mu      sync.Mutex
	queues  map[localRoute][]localStretch // those whose goroutine is alive
	slow    int                           // copies that were overtaken and have not ended
	closed  bool
	running group
}

const (
	// slowCopy is how long a copy of host memory may take before another goroutine takes over the rest of the queue.
	slowCopy = 100 * time.Millisecond
	// mostSlow limits the copies that are overtaken at a time: each keeps a goroutine and, while it waits for a page, a thread.
	mostSlow = 16
)

// localRoute is which devices the two sides of a copy are on; nil for host memory.
type localRoute struct{ local, remote *staging.Device }

// localStretch is tasks that follow each other in a work, and have one route.
type localStretch struct {
	work  *Work
	first int32
	count int    // of the tasks; there may be fewer
	bytes uint64 // of them
	route localRoute
}

func newLocalTransport(ctx context.Context, memory *Registry, counters *metrics.Peer) *localTransport {
	return &localTransport{
		segment: &Segment{ID: LocalSegment, counters: counters}, memory: memory, queues: map[localRoute][]localStretch{},
		leases: localLeases{ctx: ctx, accounts: map[localAccount]*staging.Account{}},
	}
}

func (t *localTransport) Submit(w *Work) {
	const small = 256 << 10 // bytes: to copy them takes about as long as to wake a goroutine
	s := localStretch{work: w, first: w.Head, count: len(w.Tasks), bytes: w.Bytes, route: t.routeOf(w)}
	if w.Bytes <= small && w.Transfer == nil && !t.memory.hasDevices() {
		s.first, s.bytes = t.copyPresent(w)
	}
	if s.bytes > 0 {
		t.queue(s)
	}
}

// routeOf is the route of the first task, as far as it is allowed. So a work of one route does not go through another queue first.
func (t *localTransport) routeOf(w *Work) localRoute {
	route := localRoute{local: w.device}
	if w.Transfer == nil && t.memory.hasDevices() {
		r := &w.Tasks[w.Head].Request
		if region, err := t.memory.PinRemote(r.Remote, r.Length, r.Opcode); err == nil {
			route.remote = region.Device
			region.Unpin()
		}
	}
	return route
}

// queue adds tasks to the queue of their route, or settles them if that is not possible.
func (t *localTransport) queue(s localStretch) {
	if err := t.enqueue(s); err != nil {
		s.settle(err)
	}
}

// enqueue fails when the transport is closed, and where the tasks are given up: abort does not come again for them.
func (t *localTransport) enqueue(s localStretch) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return closedError()
	}
	if err := s.work.Aborted(); err != nil {
		return err
	}
	waiting, alive := t.queues[s.route]
	t.queues[s.route] = append(waiting, s)
	if !alive {
		t.running.Go(func() { t.run(s.route) })
	}
	return nil
}

// settle ends tasks that were not begun.
func (s *localStretch) settle(err error) { s.work.Settle(s.first, 0, s.bytes, err) }

// abort settles what is queued of works that are given up: the copies before it may take long.
func (t *localTransport) abort() {
	var aborted []localStretch
	t.mu.Lock()
	for route, waiting := range t.queues {
		t.queues[route] = slices.DeleteFunc(waiting, func(s localStretch) bool {
			gone := s.work.Aborted() != nil
			if gone {
				aborted = append(aborted, s)
			}
			return gone
		})
	}
	t.mu.Unlock()
	for i := range aborted {
		aborted[i].settle(aborted[i].work.Aborted())
	}
}

func (t *localTransport) run(route localRoute) {
	for {
		t.mu.Lock()
		waiting := t.queues[route]
		if len(waiting) == 0 {
			delete(t.queues, route)
			t.mu.Unlock()
			return
		}
		next := waiting[0]
		t.queues[route] = waiting[1:]
		t.mu.Unlock()
		if t.wasOvertaken(&next) {
			return
		}
	}
}

// wasOvertaken copies tasks, and reports whether another goroutine has taken over the queue meanwhile. That is done for host
// memory only: a device makes its copies one after the other anyway.
func (t *localTransport) wasOvertaken(s *localStretch) bool {
	if s.route != (localRoute{}) {
		t.copyStretch(s)
		return false
	}
	overtaken := false // under the lock
	overtake := time.AfterFunc(slowCopy, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.slow < mostSlow {
			overtaken = true
			t.slow++
			t.running.Go(func() { t.run(s.route) })
		}
	})
	t.copyStretch(s)
	overtake.Stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	if overtaken {
		t.slow--
	}
	return overtaken
}

// close waits for the goroutines, for a limited time. The engine has aborted all work.
func (t *localTransport) close(limit time.Duration) error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.abort()
	t.leases.close()
	if !t.running.join(limit) {
		return status.Errorf(status.BatchBusy, "memory is %w by a copy within this process", ErrInUse)
	}
	return nil
}
