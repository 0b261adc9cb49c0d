package main

// #include "internal.h"
import "C"

import (
	"sync/atomic"
	"unsafe"

	"kvferry/core"

	"go.uber.org/zap"
)

// kvferry_go_tell_failure logs why a call failed: in the log of its engine, unless the engine's owner asks for reasons himself,
// or where there is none, in the one that the environment asks for. The log keeps a call that fails again and again short.
//
//export kvferry_go_tell_failure
func kvferry_go_tell_failure(engine unsafe.Pointer, call C.text_t, reason *C.char) {
	_ = protect(func() error {
		why := zap.String("reason", C.GoString(reason))
		if h, err := handleOf(engine); err == nil {
			if e := h.engine.Load(); e != nil && !h.asks {
				e.Log().Error(C.GoString(call)+" failed", why)
			}
			return nil
		}
		ownerless().Error(C.GoString(call)+" failed", why)
		return nil
	})
}

// ownerlessLog is the logger for calls that belong to no engine; made when it is needed, for the rest of the process.
var ownerlessLog atomic.Pointer[zap.Logger]

func ownerless() *zap.Logger {
	if log := ownerlessLog.Load(); log != nil {
		return log
	}
	config, _ := core.LoadConfig(environment)
	log, closeLog := core.NewLogger(config)
	if !ownerlessLog.CompareAndSwap(nil, log) {
		_ = closeLog() // nothing was logged
	}
	return ownerlessLog.Load()
}
