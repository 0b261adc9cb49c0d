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

// The way of a log line:
//
//  1. A goroutine logs, perhaps under a lock of the data path. zap encodes the line.
//  2. lineWriter.Write puts it into the bounded queue of its output, or counts it as dropped. Neither waits.
//  3. The output's goroutine writes it, and may wait for the pipe or the disk as long as that takes (logwriter.go).
//  4. Closing the log, and the end of the process, wait until what was queued is written, for logFlushTime at most.

// logLevels are the levels of MC_LOG_LEVEL.
var logLevels = map[string]zapcore.Level{
	"TRACE":   zapcore.DebugLevel,
	"INFO":    zapcore.InfoLevel,
	"WARNING": zapcore.WarnLevel,
	"ERROR":   zapcore.ErrorLevel,
}

// What one message at one level may write: the first ten lines of each second, and every thousandth after them. So a
// fault that repeats with every request neither fills a disk nor slows the data path.
const (
	logLinesPerSecond = 10
	logThereafter     = 1000
)

// NewLogger makes the logger that c asks for: lines of time, level, message and fields, to standard error or to
// kvferry.PID.log in the directory c.LogDir. While that file cannot be opened the lines go to standard error, and one of
// them says why.
//
// To log never waits, whatever becomes of the line: it may be done under any lock. Lines that do not fit the queue, or
// cannot be written, are counted, and a later line says how many there were.
//
// closeLog waits until the lines are written, for a second at most, and tells when they are not. It gives the output
// back, and must not be called before the logger's last use.
func NewLogger(c Config) (log *zap.Logger, closeLog func() error) {
	out := openLog(logFileOf(c))
	return newLogger(c, out), sync.OnceValue(out.close)
}

// logFileOf is the file that lines go to, "" for standard error.
func logFileOf(c Config) string {
	if c.LogDir == "" {
		return ""
	}
	return filepath.Join(c.LogDir, fmt.Sprintf("kvferry.%d.log", os.Getpid()))
}

func newLogger(c Config, out zapcore.WriteSyncer) *zap.Logger {
	core := zapcore.NewCore(lineEncoder(), out, logLevels[c.LogLevel])
	sampled := zapcore.NewSamplerWithOptions(core, time.Second, logLinesPerSecond, logThereafter)
	// By default zap writes to standard error what goes wrong with a line, and would wait for it.
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
		return nil // of no field that is used here
	}
	return line.Bytes()
}

// LogInternalError logs to standard error what a panic left, without waiting.
func LogInternalError(text string) {
	out := openLog("")
	_, _ = out.Write([]byte(text))
	out.release()
}
