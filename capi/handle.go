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

// engineHandle is what an engine's handle stands for.
type engineHandle struct {
	engine   atomic.Pointer[core.Engine] // nil once it is being destroyed
	gone     chan struct{}               // closed when that is over
	closeLog func() error
	asks     bool // the owner asks for the reason of each call that fails, and it need not be logged

	noRDMAOnce sync.Once // says that there is none

	mu         sync.Mutex
	transports map[string]unsafe.Pointer // handles of the installed transports, by name
}

// transportHandle is what a transport's handle stands for. No function takes one, but as an engine's it must be refused.
type transportHandle struct{ name string }

// handles are those of engines, transports and metadata servers that C callers have. Each is a number that is given out
// once: whoever goes on using one that has ended gets an error, whatever was made since, and never reaches another engine.
// Callers take it for a pointer. It lies where no process of the architectures that there are has memory, so no pointer is
// taken for one, and to Go's collector, which may come upon it, it is no pointer into the heap. They begin at random, so
// that another copy of the library, in this process or in one that it was forked from, has others.
var handles = newHandleTable()

type handleTable struct {
	mu    sync.RWMutex
	first uint64
	next  uint64
	live  map[uint64]any
}

func newHandleTable() *handleTable {
	const outside, countable = 1 << 62, 1 << 40 // how many there may be before another copy's begin
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	first := outside | (binary.NativeEndian.Uint64(random[:])%outside)&^(countable-1)
	return &handleTable{first: first, next: first, live: map[uint64]any{}}
}

// add makes the handle of what C is to know.
func (t *handleTable) add(what any) unsafe.Pointer {
	t.mu.Lock()
	defer t.mu.Unlock()
	handle := t.next
	t.next++
	t.live[handle] = what
	return *(*unsafe.Pointer)(unsafe.Pointer(&handle))
}

// find returns what a handle stands for, nil when it stands for nothing. ended says that it did.
func (t *handleTable) find(handle unsafe.Pointer) (what any, ended bool) {
	number := uint64(uintptr(handle))
	t.mu.RLock()
	defer t.mu.RUnlock()
	what = t.live[number]
	return what, what == nil && number >= t.first && number < t.next
}

// end makes a handle stand for nothing.
func (t *handleTable) end(handle unsafe.Pointer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, uint64(uintptr(handle)))
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

// liveHandleOf is handleOf for an engine that was not destroyed. Where it is being destroyed, it returns after that: the
// caller takes the error for the end of what it was about, and its memory for its own.
func liveHandleOf(handle unsafe.Pointer) (*engineHandle, *core.Engine, error) {
	h, err := handleOf(handle)
	if err != nil {
		return nil, nil, err
	}
	if e := h.engine.Load(); e != nil {
		return h, e, nil
	}
	<-h.gone
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

// end closes the engine behind a handle and ends the handle and those of its transports. Only the first call does
// anything.
func (h *engineHandle) end(handle unsafe.Pointer) error {
	e := h.engine.Swap(nil)
	if e == nil {
		return destroyedError(handle)
	}
	defer close(h.gone)
	forgetGraceful(h)
	err := e.Close()
	if err != nil {
		e.Log().Error("an engine was closed, but not all went well", zap.String("engine", e.Name()), zap.Error(err))
	}
	if !errors.Is(err, core.ErrInUse) { // what is stuck may have to log when it comes back
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
