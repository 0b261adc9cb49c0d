package main

// #include "internal.h"
import "C"

import (
	"unsafe"

	"kvferry/core"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
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
		config, _ := core.LoadConfig(environment)
		hostLog.Write(config, zapcore.ErrorLevel, C.GoString(call)+" failed", why)
		return nil
	})
}
