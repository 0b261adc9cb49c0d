// Package reload makes something of files, such as certificates, and makes it again when they change.
package reload

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/status"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// CheckInterval is how often files are read, at most, to see whether they have changed. They are compared by content:
	// a rename, a symbolic link that leads elsewhere, and a time stamp that stays are all the same then.
	CheckInterval = time.Second
	// readTimeout is how long a handshake waits for the files, which may lie in a network's file system.
	readTimeout = time.Second
	// firstReadTimeout is how long New waits for them.
	firstReadTimeout = 5 * time.Second
	// maxFile is the longest file that is read, in bytes.
	maxFile = 1 << 20
)

// Source is files and what is made of them. There is one file at least.
type Source[T fmt.Stringer] struct {
	Files []File
	Make  func(contents [][]byte) (T, error) // the error names settings
}

// File is one that a setting names.
type File struct {
	Setting, Path string
	Private       bool // nobody but the owner ought to be able to read it
}

// Reloader has what files give, and looks now and then whether they have changed. Its methods may be called from any goroutine.
type Reloader[T fmt.Stringer] struct {
	// Interval is how often the files are read, at most. It is CheckInterval, unless a test has set it.
	Interval time.Duration

	source Source[T]
	log    *zap.Logger

	value             atomic.Pointer[T]
	changes, failures atomic.Uint64

	mu      sync.Mutex
	began   time.Time     // when the last reading began
	reading chan struct{} // closed when that reading has ended
	closed  bool

	// What the goroutine that reads knows; there is one at most.
	seen    [sha256.Size]byte // of the contents that were looked at last
	good    bool              // these were taken
	problem string            // what was wrong with the files the last time; "" when nothing was
	warned  map[string]bool   // files that others can read
}

// New reads the files for the first time. An error carries status.InvalidArgument.
func New[T fmt.Stringer](s Source[T], log *zap.Logger) (*Reloader[T], error) {
	r := &Reloader[T]{Interval: CheckInterval, source: s, log: log, warned: map[string]bool{}}
	var err error
	reading, _ := r.begin(func() { err = r.first() })
	timer := time.NewTimer(firstReadTimeout)
	defer timer.Stop()
	select {
	case <-reading:
		if err != nil {
			return nil, &status.Error{Code: status.InvalidArgument, Err: err}
		}
		return r, nil
	case <-timer.C:
		return nil, status.Errorf(status.InvalidArgument, "%s: %s could not be read within %v", s.Files[0].Setting, s.Files[0].Path, firstReadTimeout)
	}
}

// Last is what the files gave when they were last read. It does not wait.
func (r *Reloader[T]) Last() T { return *r.value.Load() }

// Changes counts the changed files that were taken, and Failures those that were not, because of an error; one that lasts counts
// once.
func (r *Reloader[T]) Changes() uint64 { return r.changes.Load() }

// Failures: see Changes.
func (r *Reloader[T]) Failures() uint64 { return r.failures.Load() }

// Current is what the files give. It waits for a reading that is due, for a second at most.
func (r *Reloader[T]) Current() T {
	reading, began := r.begin(r.again)
	select {
	case <-reading: // mostly it has ended long ago
		return *r.value.Load()
	default:
	}
	timer := time.NewTimer(time.Until(began.Add(readTimeout)))
	defer timer.Stop()
	select {
	case <-reading:
	case <-timer.C:
	}
	return *r.value.Load()
}

// begin starts to read the files where that is due. It returns the reading that was started last, and when.
func (r *Reloader[T]) begin(read func()) (reading <-chan struct{}, began time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.reading != nil && (time.Since(r.began) < r.Interval || !hasEnded(r.reading)) {
		return r.reading, r.began
	}
	done := make(chan struct{})
	r.reading, r.began = done, time.Now()
	go func() {
		defer close(done)
		read()
	}()
	return done, r.began
}

func hasEnded(reading <-chan struct{}) bool {
	select {
	case <-reading:
		return true
	default:
		return false
	}
}

// first reads the files when there is nothing yet to fall back on.
func (r *Reloader[T]) first() error {
	contents, err := r.read()
	if err != nil {
		return err
	}
	made, err := r.source.Make(contents)
	if err != nil {
		return err
	}
	r.seen, r.good = digest(contents), true
	r.value.Store(&made)
	return nil
}

// again reads the files once more, and takes them if they have changed and are good.
func (r *Reloader[T]) again() {
	contents, err := r.read()
	if err != nil {
		r.fail(err)
		return
	}
	sum := digest(contents)
	if sum == r.seen {
		if r.good {
			r.problem = ""
		}
		return
	}
	r.seen, r.good = sum, false
	made, err := r.source.Make(contents)
	if err != nil {
		r.fail(err)
		return
	}
	r.good, r.problem = true, ""
	r.value.Store(&made)
	r.changes.Add(1)
	r.log.Info("changed files are in force", zap.String("setting", r.source.Files[0].Setting), zap.String("now", made.String()))
}

// fail logs what is wrong with the files, once for as long as it stays the same.
func (r *Reloader[T]) fail(err error) {
	if err.Error() == r.problem {
		return
	}
	r.problem = err.Error()
	r.failures.Add(1)
	r.log.Warn("a changed file is not used, and the last good one stays in force", zap.Error(err))
}

func digest(contents [][]byte) [sha256.Size]byte {
	h := sha256.New()
	for _, c := range contents {
		fmt.Fprintf(h, "%d:", len(c))
		h.Write(c)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// read reads all files. An error names the setting and the file.
func (r *Reloader[T]) read() ([][]byte, error) {
	contents := make([][]byte, len(r.source.Files))
	for i, f := range r.source.Files {
		content, mode, err := readFile(f.Path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Setting, err)
		}
		contents[i] = content
		if f.Private && mode&0o077 != 0 && !r.warned[f.Path] {
			r.warned[f.Path] = true
			r.log.Warn("other users of this machine can read a secret file: chmod 600 keeps it from them",
				zap.String("setting", f.Setting), zap.String("file", f.Path), zap.Stringer("mode", mode))
		}
	}
	return contents, nil
}

// readFile reads a regular file of bounded length. A pipe could be read only once, and may have no end.
func readFile(path string) (content []byte, mode fs.FileMode, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is not a regular file", path)
	}
	content, err = io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxFile)
	}
	return content, info.Mode().Perm(), err
}

// Close waits for a reading that is under way. An error says that it does not end.
func (r *Reloader[T]) Close() error {
	r.mu.Lock()
	r.closed = true
	reading := r.reading
	r.mu.Unlock()
	timer := time.NewTimer(readTimeout)
	defer timer.Stop()
	select {
	case <-reading:
		return nil
	case <-timer.C:
		return status.Errorf(status.BatchBusy, "%s: %s is still being read", r.source.Files[0].Setting, r.source.Files[0].Path)
	}
}
