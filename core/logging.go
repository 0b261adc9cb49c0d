package core

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

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
// kvferry.PID.log in the directory c.LogDir. Where that file cannot be opened it says so once and writes to standard
// error. closeLog gives the file back, and must not be called before the logger's last use.
func NewLogger(c Config) (log *zap.Logger, closeLog func() error) {
	if c.LogDir == "" {
		return newLogger(c, zapcore.Lock(os.Stderr)), func() error { return nil }
	}
	file, err := openLogFile(filepath.Join(c.LogDir, fmt.Sprintf("kvferry.%d.log", os.Getpid())))
	if err != nil {
		log = newLogger(c, zapcore.Lock(os.Stderr))
		log.Warn("the log file cannot be opened; logging to standard error", zap.Error(err))
		return log, func() error { return nil }
	}
	return newLogger(c, file), file.Close
}

func newLogger(c Config, out zapcore.WriteSyncer) *zap.Logger {
	lines := zap.NewProductionEncoderConfig()
	lines.EncodeTime = zapcore.ISO8601TimeEncoder
	lines.EncodeLevel = zapcore.CapitalLevelEncoder
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(lines), out, logLevels[c.LogLevel])
	return zap.New(zapcore.NewSamplerWithOptions(core, time.Second, logLinesPerSecond, logThereafter)).Named("kvferry")
}
