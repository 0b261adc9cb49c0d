package main

// #include "internal.h"
import "C"

import (
	"unsafe"

	"kvferry/core"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logFailure logs why a public function failed. A program that was written for Mooncake's library has no other way to learn
// it. The line goes to the log of the engine, unless the engine's owner asks for reasons. Without an engine it goes to the
// log that the environment asks for. The log keeps a call that fails again and again short.
func logFailure(engine unsafe.Pointer, function, reason string) {
	_ = protect(func() error {
		message, why := function+" failed", zap.String("reason", reason)
		h, err := handleOf(engine)
		if err != nil {
			hostLog.Write(core.LoadLogConfig(getenv), zapcore.ErrorLevel, message, why)
			return nil
		}
		if e := h.engine.Load(); e != nil && !h.asks {
			e.Log().Error(message, why)
		}
		return nil
	})
}

// kvferry_go_log_failure is logFailure for what fails before the call comes to Go.
//
//export kvferry_go_log_failure
func kvferry_go_log_failure(function C.text_t, reason *C.char) {
	logFailure(nil, C.GoString(function), C.GoString(reason))
}
