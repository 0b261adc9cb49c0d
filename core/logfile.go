package core

import (
	"fmt"
	"os"

	"go.uber.org/zap"
)

// logFileLimit is the most bytes in a log file. A full one is renamed, and one older file is kept: the logs of a process take at
// most twice as much.
const logFileLimit = 64 << 20

// fileOrStandardError is the output for lines that go to a file, or to standard error while the file cannot be opened. One line
// on standard error reports that.
type fileOrStandardError struct {
	path     string
	standard standardError
	file     *logFile // nil while it cannot be opened
	reported bool
}

func (o *fileOrStandardError) Write(line []byte) (int, error) {
	if o.file == nil {
		o.open()
	}
	if o.file == nil {
		return o.standard.Write(line)
	}
	return o.file.Write(line)
}

func (o *fileOrStandardError) open() {
	file, err := openLogFile(o.path)
	if err == nil {
		o.file = file
		return
	}
	if !o.reported {
		o.reported = true
		_, _ = o.standard.Write(warning("the log file cannot be opened; logging to standard error", zap.Error(err)))
	}
}

func (o *fileOrStandardError) Close() error {
	if o.file == nil {
		return nil
	}
	return o.file.Close()
}

// logFile is a log file. When it has grown to its limit, it is renamed, with ".1" appended to its name, and a new one is begun.
type logFile struct {
	path  string
	limit int64
	file  *os.File
	size  int64
}

// openLogFile opens the file for appending.
func openLogFile(path string) (*logFile, error) {
	l := &logFile{path: path, limit: logFileLimit}
	if err := l.reopen(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) reopen() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return err
	}
	l.file, l.size = file, info.Size()
	return nil
}

// Write appends one line.
func (l *logFile) Write(line []byte) (int, error) {
	if l.size+int64(len(line)) > l.limit {
		if err := l.rotate(); err != nil {
			return 0, fmt.Errorf("log file %s: %w", l.path, err)
		}
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	return n, err
}

// rotate renames the file and begins a new one. If that fails the old one stays open.
func (l *logFile) rotate() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil && !os.IsNotExist(err) {
		return err
	}
	old := l.file
	if err := l.reopen(); err != nil {
		return err
	}
	return old.Close()
}

func (l *logFile) Close() error { return l.file.Close() }
