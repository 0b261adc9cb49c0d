package core

import (
	"context"
	"sync"
	"time"

	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/core/status"
)

// localTransport serves the engine's own segment: a memory copy, with the checks and the states of any other transfer.
//
//  1. Submit copies little work itself, if it is in host memory and all of it is there, and queues the rest. There is a
//     queue for each pair of devices, and one for host memory alone: a device that hangs holds up no copies but its own.
//     Each has a goroutine, which lives while there is something in it. Where a copy of host memory takes long, as it does
//     when a page has to come first, another goroutine goes on with the queue.
//  2. Each task's remote range is checked and pinned as a peer's would be. A task turns out here to be another queue's where
//     that range is on a device.
//  3. The bytes are copied in steps, between which an abort is seen. What is on a device passes through staging blocks.
type localTransport struct {
	segment *Segment
	memory  *Registry
	leases  localLeases

	mu      sync.Mutex
	queues  map[localRoute][]func() // those whose goroutine is alive
	slow    int                     // copies that were overtaken and are not over
	closed  bool
	running group
}

const (
	// slowCopy is how long a copy of host memory may take before the rest of the queue overtakes it.
	slowCopy = 100 * time.Millisecond
	// mostSlow bounds how many are overtaken at a time: each keeps a goroutine and, while it waits for a page, a thread.
	mostSlow = 16
)

// localRoute is which devices the two sides of a copy are on; nil for host memory.
type localRoute struct{ local, remote *staging.Device }

func newLocalTransport(ctx context.Context, memory *Registry) *localTransport {
	return &localTransport{
		segment: &Segment{ID: LocalSegment}, memory: memory, queues: map[localRoute][]func(){},
		leases: localLeases{ctx: ctx, accounts: map[localAccount]*staging.Account{}},
	}
}

func (t *localTransport) Submit(w *Work) {
	const little = 256 << 10 // bytes: about the cost of waking a goroutine
	route := localRoute{local: w.device}
	if w.Bytes <= little && !t.memory.hasDevices() && isThere(w) {
		t.copyAll(w, route)
		return
	}
	if !t.queue(route, func() { t.copyAll(w, route) }) {
		w.settleAll(closedError())
	}
}

// isThere reports whether all memory of a work will hardly make a copy wait.
func isThere(w *Work) bool {
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

// queue has a copy made on the goroutine of a route, or returns false when the transport is closed.
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

// wasOvertaken makes a copy, and reports whether another goroutine has taken over the queue meanwhile. A device makes its
// copies in turn: there is nothing to be won by overtaking one.
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

// copyOne copies a task of that route, and queues it where it is another's.
func (t *localTransport) copyOne(w *Work, i int32, route localRoute) {
	r := &w.Tasks[i].Request
	region, err := t.memory.PinRemote(r.Remote, r.Length)
	if err == nil {
		own := localRoute{local: w.device, remote: region.Device}
		if own != route && t.queue(own, func() { t.copyOne(w, i, own) }) {
			region.Unpin()
			return
		}
		err = t.copyTask(w, r, region)
		region.Unpin()
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
		if dst.addr > src.addr { // from the end on, lest a step overwrite what a later one reads
			at = uintptr(r.Length - done - part)
		}
		if err := c.copyStep(at, part); err != nil {
			return err
		}
		done += part
	}
	return nil
}

func (t *localTransport) Endpoint() Endpoint           { return Endpoint{} }
func (t *localTransport) Abort()                       {} // the goroutine looks after every step
func (t *localTransport) Evict(*Region)                {} // a task is soon over by itself
func (t *localTransport) Assist(*Segment, func() bool) {}
func (t *localTransport) Forget(*Segment)              {}
func (t *localTransport) Links() []Link                { return nil }

// close waits for the goroutine, for a limited time; the engine has aborted all work.
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

// MemoryAt is the memory of this process from addr on, as a slice. It is for memory of the engine's own outside the Go
// heap: the collector neither keeps nor moves it. For the application's memory there is CopyMemory.
func MemoryAt(addr uintptr, length uint64) []byte { return hostmem.At(addr, length) }

// CopyMemory copies length bytes, as memmove does. Addresses that are not mapped give an error, not a crash. It may take as
// long as a page takes to come, and holds nobody else up meanwhile.
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
