package core

import (
	"context"
	"sync"

	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/core/status"
)

// localTransport serves the engine's own segment: a memory copy, with the checks and the states of any other transfer.
//
//  1. Submit copies little work itself, if it is in host memory, and queues the rest for one goroutine, which lives while
//     there is any.
//  2. Each task's remote range is checked and pinned as a peer's would be.
//  3. The bytes are copied in steps, between which an abort is seen. What is on a device passes through staging blocks.
type localTransport struct {
	segment *Segment
	memory  *Registry
	leases  localLeases

	mu      sync.Mutex
	queue   []*Work
	busy    bool // the goroutine is alive
	closed  bool
	running sync.WaitGroup
}

func newLocalTransport(ctx context.Context, memory *Registry) *localTransport {
	return &localTransport{segment: &Segment{ID: LocalSegment}, memory: memory, leases: localLeases{
		ctx: ctx, accounts: map[localAccount]*staging.Account{},
	}}
}

func (t *localTransport) Submit(w *Work) {
	const little = 256 << 10 // bytes: about the cost of waking a goroutine
	if w.Bytes <= little && !t.memory.hasDevices() {
		t.copyAll(w)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		w.settleAll(closedError())
		return
	}
	t.queue = append(t.queue, w)
	if !t.busy {
		t.busy = true
		t.running.Go(t.run)
	}
}

func (t *localTransport) run() {
	for {
		t.mu.Lock()
		if len(t.queue) == 0 {
			t.busy, t.queue = false, nil
			t.mu.Unlock()
			return
		}
		w := t.queue[0]
		t.queue = t.queue[1:]
		t.mu.Unlock()
		t.copyAll(w)
	}
}

func (t *localTransport) copyAll(w *Work) {
	for i := w.Head; i >= 0; i = w.Tasks[i].Next {
		err := t.copyTask(w, &w.Tasks[i].Request)
		w.Settle(i, 0, w.Tasks[i].Length, err)
	}
}

func (t *localTransport) copyTask(w *Work, r *Request) error {
	region, err := t.memory.PinRemote(r.Remote, r.Length)
	if err != nil {
		return err
	}
	defer region.Unpin()
	dst, src := place{uintptr(r.Remote), region.Device}, place{r.Local, w.device}
	if r.Opcode == Read {
		dst, src = src, dst
	}
	way, err := t.leases.open(dst, src, r.Length)
	if err != nil {
		return err
	}
	defer way.close()
	for done := uint64(0); done < r.Length; {
		if err := w.Aborted(); err != nil {
			return err
		}
		part := min(way.step(), r.Length-done)
		at := uintptr(done)
		if dst.addr > src.addr { // from the end on, lest a step overwrite what a later one reads
			at = uintptr(r.Length - done - part)
		}
		if err := way.copy(at, part); err != nil {
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

// Close waits for the goroutine; the engine has aborted all work.
func (t *localTransport) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.running.Wait()
	t.leases.close()
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
