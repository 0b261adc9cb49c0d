package core

import (
	"strings"
	"sync"
	"unicode"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// HostLog writes lines of the program that uses the library, and lines that belong to no engine, into the library's log. It uses
// the format and the output of the engines, and does not wait. Between two lines it keeps no output open. Any goroutine may use
// it.
type HostLog struct {
	mu         sync.Mutex
	level, dir string // the configuration of log
	log        *zap.Logger
}

// Write logs a line at the level, and to the output, of a configuration. Control characters become spaces, so that a message is
// one line.
func (h *HostLog) Write(c Config, level zapcore.Level, message string, fields ...zap.Field) {
	h.logger(c).Log(level, strings.Map(withoutControl, message), fields...)
}

// logger returns the same logger while the configuration is the same: a logger counts repeated messages.
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

// lineByLine opens an output for one line at a time.
type lineByLine struct{ file string }

func (o lineByLine) Write(line []byte) (int, error) {
	out := openLog(o.file)
	defer out.release()
	return out.Write(line)
}

func (lineByLine) Sync() error { return nil }
