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

//export kvferry_go_enable_graceful_shutdown
func kvferry_go_enable_graceful_shutdown(engine unsafe.Pointer, reason *C.char) C.int {
	return negatedLogged("enableGracefulShutdown", engine, reason, func() error {
		h, _, err := liveHandleOf(engine)
		if err != nil {
			return err
		}
		if failure := C.kvferry_watch_for_shutdown(); failure != 0 {
			return status.Errorf(status.Context, "SIGTERM and SIGINT cannot be watched: %w", syscall.Errno(failure))
		}
		h.graceful.Store(true)
		return nil
	})
}

// kvferry_go_withdraw withdraws the metadata of every engine with a graceful shutdown, and waits until the log is written. The
// thread of shutdown.c calls it after a signal.
//
//export kvferry_go_withdraw
func kvferry_go_withdraw(reason *C.char) {
	run(reason, func() error {
		var all sync.WaitGroup
		for _, h := range handles.engines() {
			if e := h.engine.Load(); e != nil && h.graceful.Load() {
				all.Go(func() { withdraw(e) })
			}
		}
		all.Wait()
		core.FlushLogs()
		return nil
	})
}

func withdraw(e *core.Engine) {
	if err := protect(e.Withdraw); err != nil {
		e.Log().Warn("metadata not withdrawn", zap.String("engine", e.Name()), zap.Error(err))
	}
}
