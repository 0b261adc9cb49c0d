package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// engineHandle is an engine, with its handle's state.
type engineHandle struct {
	engine   atomic.Pointer[core.Engine] // nil once it is being destroyed
	ended    chan struct{}               // closed when it was destroyed
	closeLog func() error
	asks     bool        // the owner calls kvferry_last_error for each call that fails: reasons need not be logged
	graceful atomic.Bool // see shutdown.go

	hideMetrics func() // ends what showMetrics began

	completions completions

	noRDMAOnce sync.Once // for the log line that there is no RDMA

	mu         sync.Mutex
	transports map[string]unsafe.Pointer // handles of the installed transports, by name
}

// transportHandle is an installed transport. No function takes its handle; one that is passed as an engine's is refused.
type transportHandle struct{ name string }

// handles are the handles of engines, transports, metadata servers, calls, texts, layouts, plans and offers that C callers have. A handle
// is a number that is used once: a caller that uses a handle after its end gets an error, and never reaches another engine. Callers take it for a pointer.
// The numbers are addresses at which no process of amd64 or arm64 has memory. So no pointer is mistaken for a handle, and Go's
// collector does not take a handle for a pointer into the heap. They begin at random, so that another copy of the library, in
// this process or in one that it was forked from, has other handles.
var handles = newHandleTable()

type handleTable struct {
	mu    sync.RWMutex
	first uint64
	next  uint64
	live  map[uint64]any
}

func newHandleTable() *handleTable {
	const outside, countable = 1 << 62, 1 << 40 // the lowest handle, and how many there may be in one copy of the library
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	first := outside | (binary.NativeEndian.Uint64(random[:])%outside)&^(countable-1)
	return &handleTable{first: first, next: first, live: map[uint64]any{}}
}

// add makes a handle.
func (t *handleTable) add(what any) unsafe.Pointer {
	t.mu.Lock()
	defer t.mu.Unlock()
	handle := t.next
	t.next++
	t.live[handle] = what
	return *(*unsafe.Pointer)(unsafe.Pointer(&handle))
}

// find returns what a handle stands for; nil if it is none. ended says that it was a handle.
func (t *handleTable) find(handle unsafe.Pointer) (what any, ended bool) {
	number := uint64(uintptr(handle))
	t.mu.RLock()
	defer t.mu.RUnlock()
	what = t.live[number]
	return what, what == nil && number >= t.first && number < t.next
}

// engines are all engines that have a handle.
func (t *handleTable) engines() (all []*engineHandle) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, what := range t.live {
		if h, ok := what.(*engineHandle); ok {
			all = append(all, h)
		}
	}
	return all
}

// end ends a handle.
func (t *handleTable) end(handle unsafe.Pointer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, uint64(uintptr(handle)))
}

// found finds what a handle of that kind stands for. kind is the word for it in errors.
func found[T any](handle unsafe.Pointer, kind string) (T, error) {
	what, ended := handles.find(handle)
	thing, ok := what.(T)
	switch {
	case ok:
		return thing, nil
	case handle == nil:
		return thing, status.Errorf(status.InvalidArgument, "the handle of the %s is NULL", kind)
	case ended:
		return thing, status.Errorf(status.InvalidArgument, "the %s %p was freed", kind, handle)
	}
	return thing, status.Errorf(status.InvalidArgument, "%p is not the handle of a %s of this library", handle, kind)
}

// endOf ends a handle of that kind.
func endOf[T any](handle unsafe.Pointer, kind string) error {
	_, err := found[T](handle, kind)
	if err == nil {
		handles.end(handle)
	}
	return err
}

// handleOf finds what an engine's handle stands for.
func handleOf(handle unsafe.Pointer) (*engineHandle, error) {
	if handle == nil {
		return nil, status.Errorf(status.InvalidArgument, "the engine handle is NULL")
	}
	what, ended := handles.find(handle)
	if ended {
		return nil, destroyedError(handle)
	}
	h, ok := what.(*engineHandle)
	if !ok {
		return nil, status.Errorf(status.InvalidArgument, "%p is not an engine handle of this library", handle)
	}
	return h, nil
}

func destroyedError(handle unsafe.Pointer) error {
	return status.Errorf(status.InvalidArgument, "the engine %p was destroyed", handle)
}

// liveHandleOf is handleOf for an engine that was not destroyed. If the engine is being destroyed, it waits until that is done, and
// fails: after the error a caller may use the memory of its transfers again.
func liveHandleOf(handle unsafe.Pointer) (*engineHandle, *core.Engine, error) {
	h, err := handleOf(handle)
	if err != nil {
		return nil, nil, err
	}
	if e := h.engine.Load(); e != nil {
		return h, e, nil
	}
	<-h.ended
	return nil, nil, destroyedError(handle)
}

// engineOf finds a live engine.
func engineOf(handle unsafe.Pointer) (*core.Engine, error) {
	_, e, err := liveHandleOf(handle)
	return e, err
}

// batchOf finds a live engine and a batch of it.
func batchOf(handle unsafe.Pointer, id uint64) (*core.Engine, *core.Batch, error) {
	e, err := engineOf(handle)
	if err != nil {
		return nil, nil, err
	}
	b, err := e.Batch(id)
	return e, b, err
}

// transport returns the handle of an installed transport, the same each time.
func (h *engineHandle) transport(name string) unsafe.Pointer {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.engine.Load() == nil {
		return nil
	}
	handle, ok := h.transports[name]
	if !ok {
		handle = handles.add(&transportHandle{name})
		h.transports[name] = handle
	}
	return handle
}

// end closes the engine, and ends its handle and those of its transports. A second call fails.
func (h *engineHandle) end(handle unsafe.Pointer) error {
	e := h.engine.Swap(nil)
	if e == nil {
		return destroyedError(handle)
	}
	defer h.completions.end()
	defer close(h.ended)
	h.hideMetrics()
	err := e.Close()
	if err != nil {
		e.Log().Error("an engine was closed with errors", zap.String("engine", e.Name()), zap.Error(err))
	}
	if !errors.Is(err, core.ErrInUse) { // a transfer that is stuck may still log
		err = errors.Join(err, h.closeLog())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, transport := range h.transports {
		handles.end(transport)
	}
	clear(h.transports)
	handles.end(handle)
	return err
}
