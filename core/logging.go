package core

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// A log line is written in these steps:
//
//  1. A goroutine logs, perhaps while it holds a lock of the data path. zap encodes the line.
//  2. lineWriter.Write adds it to the bounded queue of its output, or counts it as dropped. It does not wait.
//  3. The output's goroutine writes it, and may wait for the pipe or the disk for any time (logwriter.go).
//  4. Closing the log, and the end of the process, wait until the queued lines are written, for logFlushTime at most.

// logLevels are the levels of MC_LOG_LEVEL.
var logLevels = map[string]zapcore.Level{
	"TRACE":   zapcore.DebugLevel,
	"INFO":    zapcore.InfoLevel,
	"WARNING": zapcore.WarnLevel,
	"ERROR":   zapcore.ErrorLevel,
}

// The lines of one message at one level that are written: the first ten of each second, and every thousandth after them. A fault
// that repeats with every request neither fills a disk nor slows the data path.
const (
	logLinesPerSecond = 10
	logThereafter     = 1000
)

// NewLogger makes the logger that c describes. Its lines have time, level, message and fields, and go to standard error or to
// kvferry.PID.log in the directory c.LogDir. While that file cannot be opened they go to standard error, and one of them says
// why.
//
// Logging never waits: it may be done under any lock. Lines that do not fit the queue, or cannot be written, are counted, and a
// later line says how many there were.
//
// closeLog waits until the lines are written, for a second at most, and returns an error if they are not. It releases the output,
// and must be called after the logger's last use.
func NewLogger(c Config) (log *zap.Logger, closeLog func() error) {
	out := openLog(logFileOf(c))
	return newLogger(c, out), sync.OnceValue(out.close)
}

// logFileOf is the path of the log file, "" for standard error.
func logFileOf(c Config) string {
	if c.LogDir == "" {
		return ""
	}
	return filepath.Join(c.LogDir, fmt.Sprintf("kvferry.%d.log", os.Getpid()))
}

func newLogger(c Config, out zapcore.WriteSyncer) *zap.Logger {
	core := zapcore.NewCore(lineEncoder(), out, logLevels[c.LogLevel])
	sampled := zapcore.NewSamplerWithOptions(core, time.Second, logLinesPerSecond, logThereafter)
	// By default zap writes an error about a line to standard error, and waits for it.
	return zap.New(sampled, zap.ErrorOutput(zapcore.AddSync(io.Discard))).Named(logName)
}

const logName = "kvferry"

func lineEncoder() zapcore.Encoder {
	lines := zap.NewProductionEncoderConfig()
	lines.EncodeTime = zapcore.ISO8601TimeEncoder
	lines.EncodeLevel = zapcore.CapitalLevelEncoder
	return zapcore.NewConsoleEncoder(lines)
}

// warning is the line of a warning about the log itself.
func warning(message string, fields ...zap.Field) []byte {
	entry := zapcore.Entry{Level: zapcore.WarnLevel, Time: time.Now(), LoggerName: logName, Message: message}
	line, err := lineEncoder().EncodeEntry(entry, fields)
	if err != nil {
		return nil // the fields that are used here never fail
	}
	return line.Bytes()
}

// LogInternalError writes the text of a panic to standard error, and does not wait.
func LogInternalError(text string) {
	out := openLog("")
	_, _ = out.Write([]byte(text))
	out.release()
}
