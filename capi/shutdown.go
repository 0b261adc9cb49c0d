package main

// #include "internal.h"
import "C"

import (
	"sync"
	"syscall"
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// gracefulEngines are the engines that asked for a graceful shutdown.
var gracefulEngines = struct {
	sync.Mutex
	handles map[*engineHandle]struct{}
}{handles: map[*engineHandle]struct{}{}}

//export kvferry_go_enable_graceful_shutdown
func kvferry_go_enable_graceful_shutdown(engine unsafe.Pointer, reason *C.char) C.int {
	return negated(reason, func() error {
		gracefulEngines.Lock()
		defer gracefulEngines.Unlock()
		h, _, err := liveHandleOf(engine)
		if err != nil {
			return err
		}
		if failure := C.kvferry_watch_for_shutdown(); failure != 0 {
			return status.Errorf(status.Context, "SIGTERM and SIGINT cannot be watched: %w", syscall.Errno(failure))
		}
		gracefulEngines.handles[h] = struct{}{}
		return nil
	})
}

// forgetGraceful takes a handle whose engine is gone out of gracefulEngines.
func forgetGraceful(h *engineHandle) {
	gracefulEngines.Lock()
	defer gracefulEngines.Unlock()
	delete(gracefulEngines.handles, h)
}

// kvferry_go_withdraw withdraws the metadata of every engine that asked for a graceful shutdown, and has what was logged
// written. It is called by the thread that shutdown.c keeps for that, once a signal came in.
//
//export kvferry_go_withdraw
func kvferry_go_withdraw(reason *C.char) {
	run(reason, func() error {
		var all sync.WaitGroup
		for _, e := range liveGracefulEngines() {
			all.Go(func() { withdraw(e) })
		}
		all.Wait()
		core.FlushLogs()
		return nil
	})
}

func liveGracefulEngines() (engines []*core.Engine) {
	gracefulEngines.Lock()
	defer gracefulEngines.Unlock()
	for h := range gracefulEngines.handles {
		if e := h.engine.Load(); e != nil {
			engines = append(engines, e)
		}
	}
	return engines
}

func withdraw(e *core.Engine) {
	if err := protect(e.Withdraw); err != nil {
		e.Log().Warn("metadata not withdrawn", zap.String("engine", e.Name()), zap.Error(err))
	}
}
