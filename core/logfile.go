package core

import (
	"fmt"
	"os"
	"sync"
)

// logFileLimit is when a log file is set aside, in bytes. One older file is kept, so a process's logs take at most
// twice this.
const logFileLimit = 64 << 20

// logFile is a log file that starts anew when it has grown to its limit; what it held is kept beside it, under its name
// with ".1" appended. Engines of one process that log to one directory share one logFile. It may be used from any
// goroutine.
type logFile struct {
	path  string
	limit int64
	users int // guarded by logFiles

	mu   sync.Mutex
	file *os.File
	size int64
}

// logFiles are the open log files of the process, by path.
var logFiles = struct {
	sync.Mutex
	open map[string]*logFile
}{open: map[string]*logFile{}}

// openLogFile opens the file for appending, or returns the one that is open. Each opening needs a Close of its own.
func openLogFile(path string) (*logFile, error) {
	logFiles.Lock()
	defer logFiles.Unlock()
	l := logFiles.open[path]
	if l == nil {
		l = &logFile{path: path, limit: logFileLimit}
		if err := l.reopen(); err != nil {
			return nil, err
		}
		logFiles.open[path] = l
	}
	l.users++
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
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(line)) > l.limit {
		if err := l.rotate(); err != nil {
			return 0, fmt.Errorf("log file %s: %w", l.path, err)
		}
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	return n, err
}

// rotate sets the file aside and starts a new one. Where that fails the old one stays open.
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

// Sync makes what was written durable.
func (l *logFile) Sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Sync()
}

// Close gives the file up; the last of its users closes it.
func (l *logFile) Close() error {
	logFiles.Lock()
	defer logFiles.Unlock()
	if l.users--; l.users > 0 {
		return nil
	}
	delete(logFiles.open, l.path)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}
