package security

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
	// checkInterval is how often files are read, at most, to see whether they have changed. They are compared by content:
	// a rename, a symbolic link that leads elsewhere, and a time stamp that stays are all the same then.
	checkInterval = time.Second
	// readTimeout is how long a handshake waits for the files, which may lie in a network's file system.
	readTimeout = time.Second
	// firstReadTimeout is how long New waits for them.
	firstReadTimeout = 5 * time.Second
	// maxFile is the longest file that is read, in bytes.
	maxFile = 1 << 20
)

// source is files and what is made of them.
type source struct {
	files []file
	make  func(contents [][]byte) (credentials, error) // the error names settings
}

// file is one that a setting names.
type file struct {
	setting, path string
	private       bool // nobody but the owner ought to be able to read it
}

// reloader has the credentials that files give, and looks now and then whether they have changed.
type reloader struct {
	source
	log *zap.Logger

	value             atomic.Pointer[credentials]
	reloads, failures atomic.Uint64

	mu      sync.Mutex
	began   time.Time     // when the last reading began
	reading chan struct{} // closed when that reading has ended
	closed  bool

	// What the goroutine that reads knows; there is one at most.
	seen     [sha256.Size]byte // of the contents that were looked at last
	good     bool              // these were taken
	problem  string            // what was wrong with the files the last time; "" when nothing was
	warned   map[string]bool   // files that others can read
	interval time.Duration     // checkInterval, where no test has set it
}

// newReloader reads the files for the first time.
func newReloader(s source, log *zap.Logger) (*reloader, error) {
	r := &reloader{source: s, log: log, warned: map[string]bool{}, interval: checkInterval}
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
		return nil, status.Errorf(status.InvalidArgument, "%s: %s could not be read within %v", s.files[0].setting, s.files[0].path, firstReadTimeout)
	}
}

// current is what the files give. It waits for a reading that is due, for a second at most.
func (r *reloader) current() credentials {
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
func (r *reloader) begin(read func()) (reading <-chan struct{}, began time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.reading != nil && (time.Since(r.began) < r.interval || !hasEnded(r.reading)) {
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
func (r *reloader) first() error {
	contents, err := r.read()
	if err != nil {
		return err
	}
	made, err := r.make(contents)
	if err != nil {
		return err
	}
	r.seen, r.good = digest(contents), true
	r.value.Store(&made)
	return nil
}

// again reads the files once more, and takes them if they have changed and are good.
func (r *reloader) again() {
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
	made, err := r.make(contents)
	if err != nil {
		r.fail(err)
		return
	}
	r.good, r.problem = true, ""
	r.value.Store(&made)
	r.reloads.Add(1)
	r.log.Info("changed files are in force", zap.String("setting", r.files[0].setting), zap.String("now", made.String()))
}

// fail logs what is wrong with the files, once for as long as it stays the same.
func (r *reloader) fail(err error) {
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
func (r *reloader) read() ([][]byte, error) {
	contents := make([][]byte, len(r.files))
	for i, f := range r.files {
		content, mode, err := readFile(f.path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.setting, err)
		}
		contents[i] = content
		if f.private && mode&0o077 != 0 && !r.warned[f.path] {
			r.warned[f.path] = true
			r.log.Warn("other users of this machine can read a secret file: chmod 600 keeps it from them",
				zap.String("setting", f.setting), zap.String("file", f.path), zap.Stringer("mode", mode))
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

// close waits for a reading that is under way. An error says that it does not end.
func (r *reloader) close() error {
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
		return status.Errorf(status.BatchBusy, "%s: %s is still being read", r.files[0].setting, r.files[0].path)
	}
}
