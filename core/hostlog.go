package core

import (
	"strings"
	"sync"
	"unicode"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// HostLog writes the lines of programs that use the library, and those that belong to no engine, into the library's log: in
// its format, where the process's engines write theirs, and without waiting. It holds no output between two lines. Any
// goroutine may use it.
type HostLog struct {
	mu         sync.Mutex
	level, dir string // that log was made for
	log        *zap.Logger
}

// Write logs a line as the configuration has it: MC_LOG_LEVEL, and MC_LOG_DIR. Control characters become spaces, so that
// one message is one line.
func (h *HostLog) Write(c Config, level zapcore.Level, message string, fields ...zap.Field) {
	h.logger(c).Log(level, strings.Map(withoutControl, message), fields...)
}

// logger returns the same logger while the configuration is the same: it counts the messages that repeat.
func (h *HostLog) logger(c Config) *zap.Logger {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.log == nil || h.level != c.LogLevel || h.dir != c.LogDir {
		h.level, h.dir = c.LogLevel, c.LogDir
		h.log = newLogger(c, lineByLine{logFileOf(c)})
	}
	return h.log
}

func withoutControl(r rune) rune {
	if unicode.IsControl(r) {
		return ' '
	}
	return r
}

// lineByLine uses an output for as long as it takes to queue one line.
type lineByLine struct{ file string }

func (o lineByLine) Write(line []byte) (int, error) {
	out := openLog(o.file)
	defer out.release()
	return out.Write(line)
}

func (lineByLine) Sync() error { return nil }
