package core

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// The limits of an output's queue, the line that is being written included. Lines beyond them are dropped.
const (
	mostLogLines   = 1024
	mostLogBytes   = 1 << 20
	longestLogLine = 64 << 10 // bytes; the rest of a longer line is cut off
)

// logFlushTime is how long closing a log waits for its lines to be written.
const logFlushTime = time.Second

// lineWriter writes log lines to one output, in the order in which they were logged, on a goroutine of its own. All loggers of the
// process with the same output share it. The goroutine ends after the last of them was closed. If it then waits for an output
// that takes nothing, it ends later, and a logger that is made meanwhile shares it: an output never has two goroutines.
//
// Its methods may be called from any goroutine. Write and release never wait.
type lineWriter struct {
	key    outputKey
	output output

	// Guarded by outputs.
	users   int
	queue   []logEntry
	changed *sync.Cond // users and queue
	lines   int        // entries that are queued or being written, without marks
	bytes   int        // their length
	began   time.Time  // when the goroutine began with an entry; zero while it has none

	// Of the goroutine.
	lost   uint64 // lines that were dropped since the last report
	reason error  // why the last of them could not be written; nil if it did not fit the queue
	torn   bool   // the last line was written in part
}

// logEntry is a line, or a number of lines that were dropped here, or a mark. A mark is a channel that is closed when all entries
// before it were written or dropped.
type logEntry struct {
	line    []byte
	dropped uint64
	mark    chan struct{}
}

// output takes lines from one goroutine. Its methods may wait.
type output interface {
	// Write writes one line. An empty one writes nothing, but has a file opened.
	Write(line []byte) (int, error)
	Close() error
}

// outputKey identifies an output.
type outputKey struct {
	file     string   // "" for standard error
	standard *os.File // standard error
}

func (k outputKey) String() string {
	if k.file == "" {
		return "standard error"
	}
	return k.file
}

// outputs are the outputs that have a goroutine.
var outputs = struct {
	sync.Mutex
	open map[outputKey]*lineWriter
}{open: map[outputKey]*lineWriter{}}

// unwritten is UnwrittenLogLines.
var unwritten atomic.Uint32

// droppedLogLines is how many of the process's log lines did not fit a queue, or could not be written.
var droppedLogLines atomic.Uint64

// UnwrittenLogLines is the number of the process's log lines that are queued or being written. A process that is about to
// end waits, for a bounded time, until it is 0.
func UnwrittenLogLines() *atomic.Uint32 { return &unwritten }

// FlushLogs waits until the lines that the process has logged so far are written, for a second at most.
func FlushLogs() {
	outputs.Lock()
	var flushing sync.WaitGroup
	for _, w := range outputs.open {
		flushing.Go(func() { _ = w.Sync() }) // there is no other place to report it
	}
	outputs.Unlock()
	flushing.Wait()
}

// openLog returns the writer for a file, or for standard error where file is "". Each call needs a release or a close.
func openLog(file string) *lineWriter {
	key := outputKey{file, os.Stderr}
	outputs.Lock()
	defer outputs.Unlock()
	w := outputs.open[key]
	if w == nil {
		w = &lineWriter{key: key, changed: sync.NewCond(&outputs)}
		w.output = &standardError{key.standard}
		if file != "" {
			w.output = &fileOrStandardError{path: file, standard: standardError{key.standard}}
			w.put(logEntry{line: []byte{}})
		}
		outputs.open[key] = w
		go w.run()
	}
	w.users++
	return w
}

// Write queues a copy of a line, or counts it as dropped.
func (w *lineWriter) Write(line []byte) (int, error) {
	outputs.Lock()
	defer outputs.Unlock()
	if w.users == 0 {
		return len(line), nil // all its loggers are closed
	}
	kept := append([]byte(nil), line[:min(len(line), longestLogLine)]...)
	if len(kept) < len(line) {
		kept[len(kept)-1] = '\n'
	}
	last := len(w.queue) - 1
	switch {
	case w.lines < mostLogLines && w.bytes+len(kept) <= mostLogBytes:
		w.put(logEntry{line: kept})
	case last >= 0 && w.queue[last].dropped > 0:
		w.queue[last].dropped++
		droppedLogLines.Add(1)
	default:
		w.put(logEntry{dropped: 1})
		droppedLogLines.Add(1)
	}
	return len(line), nil
}

// put queues an entry. The lock is held.
func (w *lineWriter) put(e logEntry) {
	if e.mark == nil {
		w.lines++
		w.bytes += len(e.line)
		unwritten.Add(1)
	}
	w.queue = append(w.queue, e)
	w.changed.Signal()
}

// Sync waits until the lines so far are written, for logFlushTime at most. The time counts from when the goroutine began to write
// its current entry: if an output takes nothing and several loggers are closed, only the first waits so long. An error says that
// the lines are not written.
func (w *lineWriter) Sync() error {
	outputs.Lock()
	lines, limit := w.lines, logFlushTime
	if !w.began.IsZero() {
		limit -= time.Since(w.began)
	}
	mark := make(chan struct{})
	if lines > 0 && limit > 0 {
		w.put(logEntry{mark: mark})
	}
	outputs.Unlock()
	if lines == 0 {
		return nil
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-mark:
		return nil
	case <-timer.C:
		return fmt.Errorf("log: up to %d lines are not written: %v took nothing for %v", lines, w.key, logFlushTime)
	}
}

func (w *lineWriter) close() error {
	defer w.release()
	return w.Sync()
}

// release ends one use.
func (w *lineWriter) release() {
	outputs.Lock()
	defer outputs.Unlock()
	w.users--
	w.changed.Signal()
}

// run is the goroutine.
func (w *lineWriter) run() {
	for e, ok := w.next(); ok; e, ok = w.next() {
		if e.mark != nil {
			close(e.mark)
			continue
		}
		w.write(e)
		w.wrote(e)
	}
	_ = w.output.Close() // there is no other place to report an error
}

// next waits for an entry. It returns false when the queue is empty and the output has no loggers.
func (w *lineWriter) next() (e logEntry, ok bool) {
	outputs.Lock()
	defer outputs.Unlock()
	for len(w.queue) == 0 && w.users > 0 {
		w.changed.Wait()
	}
	if len(w.queue) == 0 {
		delete(outputs.open, w.key)
		return logEntry{}, false
	}
	e, w.queue[0] = w.queue[0], logEntry{}
	w.queue = w.queue[1:]
	w.began = time.Now()
	return e, true
}

// wrote removes an entry from the counts of the queue.
func (w *lineWriter) wrote(e logEntry) {
	outputs.Lock()
	defer outputs.Unlock()
	w.lines--
	w.bytes -= len(e.line)
	w.began = time.Time{}
	unwritten.Add(^uint32(0))
}

// write writes a line, and before it a line that says how many were dropped.
func (w *lineWriter) write(e logEntry) {
	w.lost += e.dropped
	reported := w.lost == 0 || w.try(w.lostLine())
	if reported {
		w.lost, w.reason = 0, nil
	}
	if e.line == nil {
		return
	}
	if (!reported || !w.try(e.line)) && len(e.line) > 0 {
		w.lost++
		droppedLogLines.Add(1)
	}
}

func (w *lineWriter) lostLine() []byte {
	message := fmt.Sprintf("%d log lines were dropped: the log could not be written", w.lost)
	if w.reason == nil {
		return warning(message)
	}
	return warning(message, zap.Error(w.reason))
}

// try writes a line, after a line break if the last one was cut off, and reports whether that was possible.
func (w *lineWriter) try(line []byte) bool {
	if w.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := w.output.Write(line)
	if err != nil {
		w.torn = w.torn || n > 0
		w.reason = err
		return false
	}
	w.torn = false
	return true
}
