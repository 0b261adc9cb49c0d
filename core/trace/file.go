package trace

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// Options say what is recorded, and where to.
type Options struct {
	File    string        // a %p in it is the process's number; "" turns tracing off
	Batches int           // the last ones are kept, of each engine
	Slower  time.Duration // only batches that take as long are kept; 0: all
	Log     *zap.Logger
	// UnderWay returns the oldest batches that have not ended and are not recorded. It may be nil; it is not called once the
	// recorder is closed.
	UnderWay func(most int) []UnderWay
}

// UnderWay is a batch that has not ended.
type UnderWay struct {
	Number uint64
	Began  time.Duration // by clock.Now
}

const (
	// writePause is the least time between two times that the file is written.
	writePause = 2 * time.Second
	// writeShare limits the part of a processor that writing takes: the pause is so many times as long as writing took.
	writeShare = 200
	// closeTimeout is how long the end of an engine waits for the file to be written.
	closeTimeout = time.Second
	// mostEnded is how many engines that have ended are still in the file.
	mostEnded = 16
)

// file is the process's file of one name. It is made with the first engine, and stays: the file has engines that have ended, too.
// Its goroutine runs while there are engines. It replaces the whole file each time, so that a reader always finds a complete one.
type file struct {
	path    string
	changed chan struct{} // has an element when there is something new
	writing sync.Mutex    // a former goroutine may still be at it

	mu        sync.Mutex
	recorders []*Recorder
	users     int
	closing   chan struct{} // closed when the last engine has ended
	written   chan struct{} // closed when the goroutine has ended
	told      bool          // that it cannot be written
}

// files are the process's, by their paths.
var files = struct {
	sync.Mutex
	byPath map[string]*file
}{byPath: map[string]*file{}}

// Open begins to record an engine; it returns nil where tracing is off. The caller calls Close when the engine has ended.
func Open(name, identity string, o Options) *Recorder {
	if o.File == "" {
		return nil
	}
	path := strings.ReplaceAll(o.File, "%p", strconv.Itoa(os.Getpid()))
	files.Lock()
	f := files.byPath[path]
	if f == nil {
		f = &file{path: path, changed: make(chan struct{}, 1)}
		files.byPath[path] = f
	}
	files.Unlock()
	r := newRecorder(name, identity, o, f)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recorders = append(f.recorders, r)
	if f.users++; f.users == 1 {
		f.closing, f.written = make(chan struct{}), make(chan struct{})
		go f.run(o.Log, f.closing, f.written)
	}
	return r
}

// Close ends the record of an engine. The last engine of the process waits until the file is written, for a second at most.
func (r *Recorder) Close() {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.closed, r.others = true, nil
	r.mu.Unlock()
	f := r.file
	f.touch()
	f.mu.Lock()
	f.forget()
	f.users--
	last, written := f.users == 0, f.written
	if last {
		close(f.closing)
	}
	f.mu.Unlock()
	if !last {
		return
	}
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-written:
	case <-timer.C:
	}
}

// forget drops the oldest engines that have ended, if there are many. The lock is held.
func (f *file) forget() {
	ended := 0
	for _, r := range f.recorders {
		if r.hasEnded() {
			ended++
		}
	}
	f.recorders = slices.DeleteFunc(f.recorders, func(r *Recorder) bool {
		drop := ended > mostEnded && r.hasEnded()
		if drop {
			ended--
		}
		return drop
	})
}

func (r *Recorder) hasEnded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// touch notes that there is something new. It does not wait.
func (f *file) touch() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// run writes the file while there are engines, and at their end.
func (f *file) run(log *zap.Logger, closing, written chan struct{}) {
	defer close(written)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for open := true; open; {
		select {
		case <-f.changed:
			select {
			case <-pause.C:
			case <-closing:
				open = false
			}
		case <-closing:
			open = false
		}
		began := time.Now()
		unfinished, err := f.write()
		f.tell(log, err)
		if unfinished {
			f.touch() // the next time it says for how long
		}
		pause.Reset(max(writePause, writeShare*time.Since(began)))
	}
}

// tell logs an error once, until the file can be written again.
func (f *file) tell(log *zap.Logger, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && !f.told {
		log.Warn("the trace cannot be written", zap.String("KVFERRY_TRACE_FILE", f.path), zap.Error(err))
	}
	f.told = err != nil
}

// write replaces the file. unfinished says that something in it has not ended.
//
// The new file gets another name first, and replaces the old one by rename. A link or a device of that name is refused, and not
// replaced or followed.
func (f *file) write() (unfinished bool, err error) {
	f.writing.Lock()
	defer f.writing.Unlock()
	switch info, err := os.Lstat(f.path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%s is not a regular file", f.path)
	}
	hidden := fmt.Sprintf("%s.%d.new", f.path, os.Getpid())
	_ = os.Remove(hidden) // of a killed process with this number
	out, err := os.OpenFile(hidden, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return false, err
	}
	f.mu.Lock()
	recorders := slices.Clone(f.recorders)
	f.mu.Unlock()
	buffered := bufio.NewWriterSize(out, 1<<20)
	unfinished, err = encode(buffered, recorders)
	if err == nil {
		err = buffered.Flush()
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(hidden, f.path)
	}
	if err != nil {
		_ = os.Remove(hidden)
	}
	return unfinished, err
}
