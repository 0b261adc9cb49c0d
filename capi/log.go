package main

// #include "internal.h"
import "C"

import (
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"

	"go.uber.org/zap/zapcore"
)

// init gives log.c the number of log lines that are not written yet. The counter is a package variable, which never moves.
func init() { C.kvferry_watch_log((*C.uint32_t)(unsafe.Pointer(core.UnwrittenLogLines()))) }

// hostLog gets the lines of kvferry_log, and those that belong to no engine.
var hostLog core.HostLog

// levels are those of transfer_engine_ext.h.
var levels = map[C.int]zapcore.Level{
	C.KVFERRY_LOG_TRACE:   zapcore.DebugLevel,
	C.KVFERRY_LOG_INFO:    zapcore.InfoLevel,
	C.KVFERRY_LOG_WARNING: zapcore.WarnLevel,
	C.KVFERRY_LOG_ERROR:   zapcore.ErrorLevel,
}

//export kvferry_go_log
func kvferry_go_log(level C.int, text C.text_t, reason *C.char) C.int {
	return negated(reason, func() error {
		message, err := readText("the text of a log line", text)
		if err != nil {
			return err
		}
		known, ok := levels[level]
		if !ok {
			return status.Errorf(status.InvalidArgument, "there is no log level %d", int(level))
		}
		hostLog.Write(core.LoadLogConfig(getenv), known, message)
		return nil
	})
}
