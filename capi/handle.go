package main

import (
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"

	"github.com/mattn/go-pointer"
)

// engineHandle is what an engine's handle stands for.
type engineHandle struct {
	engine   atomic.Pointer[core.Engine] // nil once destroyed
	closeLog func() error

	noRDMAOnce sync.Once // says that there is none

	mu         sync.Mutex
	transports map[string]unsafe.Pointer // handles of the installed transports, by name
}

// transportHandle is what a transport's handle stands for. No function takes one, but as an engine's it must be refused.
type transportHandle struct{ name string }

// keptTombstones is how many handles that have ended are remembered. An address is given out again only after it has
// left this number, so a program that goes on using a stale handle gets an error and not another engine.
const keptTombstones = 4096

// ended holds the handles that have ended, oldest first.
var ended struct {
	sync.Mutex
	handles []unsafe.Pointer
}

// bury ends a handle. What it stands for has been emptied and still answers that it is gone.
func bury(handle unsafe.Pointer) {
	ended.Lock()
	defer ended.Unlock()
	ended.handles = append(ended.handles, handle)
	if len(ended.handles) > keptTombstones {
		pointer.Unref(ended.handles[0])
		ended.handles = ended.handles[1:]
	}
}

// handleOf finds what an engine's handle stands for, also after the engine was destroyed.
func handleOf(handle unsafe.Pointer) (*engineHandle, error) {
	if handle == nil {
		return nil, status.Errorf(status.InvalidArgument, "the engine handle is NULL")
	}
	h, ok := pointer.Restore(handle).(*engineHandle)
	if !ok {
		return nil, status.Errorf(status.InvalidArgument, "%p is not an engine handle of this library", handle)
	}
	return h, nil
}

// liveHandleOf is handleOf for an engine that was not destroyed.
func liveHandleOf(handle unsafe.Pointer) (*engineHandle, *core.Engine, error) {
	h, err := handleOf(handle)
	if err != nil {
		return nil, nil, err
	}
	if e := h.engine.Load(); e != nil {
		return h, e, nil
	}
	return nil, nil, status.Errorf(status.InvalidArgument, "the engine %p was destroyed", handle)
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
		handle = pointer.Save(&transportHandle{name})
		h.transports[name] = handle
	}
	return handle
}

// end closes the engine behind a handle and ends the handle and those of its transports. Only the first call does
// anything.
func (h *engineHandle) end(handle unsafe.Pointer) error {
	e := h.engine.Swap(nil)
	if e == nil {
		return nil
	}
	forgetGraceful(h)
	err := errors.Join(e.Close(), h.closeLog())
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, transport := range h.transports {
		bury(transport)
	}
	clear(h.transports)
	bury(handle)
	return err
}
