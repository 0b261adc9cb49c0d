package core

import (
	"context"
	"sync"
	"time"

	"kvferry/core/hostmem"
	"kvferry/core/metrics"
	"kvferry/core/staging"
	"kvferry/core/status"
)

// localTransport serves the engine's own segment, by copies within the process, with the checks and states of other transfers. The
// engine gives it work as it gives work to a Transport, and needs nothing else that a Transport has.
//
//  1. Submit copies small work at once, if it is in host memory and all of its pages are in memory. It queues other work. There
//     is a queue for each pair of devices, and one for host memory: a device that hangs delays only its own copies. A queue has a
//     goroutine while it is not empty. If a copy of host memory takes long, because a page has to be loaded first, another
//     goroutine goes on with the queue.
//  2. The remote range of each task is checked and pinned, as for a request of a peer. If the range is on a device, the task
//     moves to the queue of that device.
//  3. The bytes are copied in steps. Between two steps an abort is noticed. Bytes of a device pass through staging blocks
//     (local_copy.go).
type localTransport struct {
	segment *Segment
	memory  *Registry
	leases  localLeases

	mu      sync.Mutex
	queues  map[localRoute][]func() // those whose goroutine is alive
	slow    int                     // copies that were overtaken and have not ended
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

func newLocalTransport(ctx context.Context, memory *Registry, counters *metrics.Peer) *localTransport {
	return &localTransport{
		segment: &Segment{ID: LocalSegment, counters: counters}, memory: memory, queues: map[localRoute][]func(){},
		leases: localLeases{ctx: ctx, accounts: map[localAccount]*staging.Account{}},
	}
}

func (t *localTransport) Submit(w *Work) {
	const small = 256 << 10 // bytes: to copy them takes about as long as to wake a goroutine
	route := localRoute{local: w.device}
	if w.Bytes <= small && !t.memory.hasDevices() && isInMemory(w) {
		t.copyAll(w, route)
		return
	}
	if !t.queue(route, func() { t.copyAll(w, route) }) {
		w.settleAll(closedError())
	}
}

// isInMemory reports whether a copy of a work will most likely not wait for a page.
func isInMemory(w *Work) bool {
	now := hostmem.Now()
	for i := w.Head; i >= 0; i = w.Tasks[i].Next {
		r := &w.Tasks[i].Request
		local, remote := hostmem.Reading, hostmem.Writing
		if r.Opcode == Read {
			local, remote = remote, local
		}
		if !now.There(r.Local, r.Length, local) || !now.There(uintptr(r.Remote), r.Length, remote) {
			return false
		}
	}
	return true
}

// queue adds a copy to the queue of a route. It returns false when the transport is closed.
func (t *localTransport) queue(route localRoute, copy func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	waiting, alive := t.queues[route]
	t.queues[route] = append(waiting, copy)
	if !alive {
		t.running.Go(func() { t.run(route) })
	}
	return true
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
		t.queues[route] = waiting[1:]
		t.mu.Unlock()
		if t.wasOvertaken(route, waiting[0]) {
			return
		}
	}
}

// wasOvertaken makes a copy, and reports whether another goroutine has taken over the queue meanwhile. That is done for host
// memory only: a device makes its copies one after the other anyway.
func (t *localTransport) wasOvertaken(route localRoute, copy func()) bool {
	if route != (localRoute{}) {
		copy()
		return false
	}
	overtaken := false // under the lock
	overtake := time.AfterFunc(slowCopy, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.slow < mostSlow {
			overtaken = true
			t.slow++
			t.running.Go(func() { t.run(route) })
		}
	})
	copy()
	overtake.Stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	if overtaken {
		t.slow--
	}
	return overtaken
}

func (t *localTransport) copyAll(w *Work, route localRoute) {
	for i := w.Head; i >= 0; i = w.Tasks[i].Next {
		t.copyOne(w, i, route)
	}
}

// copyOne copies a task, or adds it to the queue of another route if it belongs there.
func (t *localTransport) copyOne(w *Work, i int32, route localRoute) {
	r := &w.Tasks[i].Request
	region, err := t.memory.PinRemote(r.Remote, r.Length, r.Opcode)
	if err == nil {
		own := localRoute{local: w.device, remote: region.Device}
		if own != route && t.queue(own, func() { t.copyOne(w, i, own) }) {
			region.Unpin()
			return
		}
		err = t.copyTask(w, r, region)
		region.Unpin()
	}
	if err == nil {
		t.segment.counters.Add(metrics.BytesOf(metrics.Operation(r.Opcode), metrics.Local), r.Length)
	}
	w.Settle(i, 0, r.Length, err)
}

func (t *localTransport) copyTask(w *Work, r *Request, region *Region) error {
	dst, src := place{uintptr(r.Remote), region.Device}, place{r.Local, w.device}
	if r.Opcode == Read {
		dst, src = src, dst
	}
	c, err := t.leases.open(dst, src, r.Length)
	if err != nil {
		return err
	}
	defer c.release()
	for done := uint64(0); done < r.Length; {
		if err := w.Aborted(); err != nil {
			return err
		}
		part := min(c.maxStep(), r.Length-done)
		at := uintptr(done)
		if dst.addr > src.addr { // from the end, so that no step overwrites bytes that a later one reads
			at = uintptr(r.Length - done - part)
		}
		if err := c.copyStep(at, part); err != nil {
			return err
		}
		done += part
	}
	return nil
}

// close waits for the goroutines, for a limited time. The engine has aborted all work.
func (t *localTransport) close(limit time.Duration) error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.leases.close()
	if !t.running.join(limit) {
		return status.Errorf(status.BatchBusy, "memory is %w by a copy within this process", ErrInUse)
	}
	return nil
}

// MemoryAt is the memory of this process from addr on, as a slice. It is for the engine's own memory outside the Go heap, which
// the collector neither keeps nor moves. For the application's memory there is CopyMemory.
func MemoryAt(addr uintptr, length uint64) []byte { return hostmem.At(addr, length) }

// CopyMemory copies length bytes, as memmove does. Addresses that are not mapped give an error, not a crash. It may wait until a
// page is loaded; other goroutines run meanwhile.
func CopyMemory(dst, src uintptr, length uint64) error {
	if dst == 0 || src == 0 {
		return status.Errorf(status.InvalidArgument, "copying %d bytes from %#x to %#x: no memory is at NULL", length, src, dst)
	}
	var copier hostmem.Copier
	if err := copier.Copy(dst, src, length); err != nil {
		return status.Errorf(status.InvalidArgument, "copying %d bytes from %#x to %#x: %w", length, src, dst, err)
	}
	return nil
}
