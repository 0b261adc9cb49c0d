package metaserver

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// A snapshot is lines of JSON: a header, then as many entries as the header says. The way of it:
//
//  1. openSnapshot locks the snapshot, so that no other server writes it, and reads it. A file that is torn, or no snapshot, is
//     put aside if the former snapshot can be read instead.
//  2. run writes the entries when the store has changed: into a new file, which replaces the snapshot once it is on the disk.
//     So the file is whole at any moment. The one that it replaces is kept as the former snapshot.
//  3. close writes the last changes and unlocks.

// Names beside a snapshot's own.
const (
	newSuffix    = ".new"    // the next one, while it is written
	formerSuffix = ".former" // the one before
	badSuffix    = ".bad"    // one that could not be read
)

const format = "kvferry metadata"

type head struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	Entries int    `json:"entries"`
}

type entry struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// pause is the shortest time between two writes.
const pause = time.Second

// never is the version of a file that has not been written.
const never = math.MaxUint64

// snapshot keeps a store in a file.
type snapshot struct {
	file     string
	lock     *os.File
	store    *store
	log      *zap.Logger
	failures atomic.Uint64

	saved   uint64 // version of the store that is in the file; of the goroutine, and after it of close
	closing chan struct{}
	writer  sync.WaitGroup
	once    sync.Once
	final   error // of the last write
}

// openSnapshot loads the file into the store, if there is one, and starts the goroutine that keeps it current. It writes the
// file once, so that a file that cannot be written is an error here.
func openSnapshot(file string, s *store, log *zap.Logger) (*snapshot, error) {
	if target, err := filepath.EvalSymlinks(file); err == nil {
		file = target // the link stays
	}
	lock, err := lockFile(file)
	if err != nil {
		return nil, status.Errorf(status.Metadata, "metadata server: the snapshot %s cannot be written: %w", file, err)
	}
	n := &snapshot{file: file, lock: lock, store: s, log: log, saved: never, closing: make(chan struct{})}
	if err := n.load(); err != nil {
		return nil, errors.Join(err, unlock(lock))
	}
	if err := n.save(); err != nil {
		return nil, errors.Join(err, unlock(lock))
	}
	n.writer.Go(n.run)
	return n, nil
}

// load reads the snapshot or, where it is torn or no snapshot, the former one. It then puts the bad file aside.
func (n *snapshot) load() error {
	err := load(n.file, n.store)
	if err == nil {
		return nil
	}
	var beyond *refusal
	former := n.file + formerSuffix
	if !errors.As(err, &beyond) && exists(former) && n.store.reset(func() error { return load(former, n.store) }) == nil {
		n.log.Error("the metadata snapshot cannot be read and is put aside; the former one is used, and changes after it are lost",
			zap.String("snapshot", n.file), zap.String("put aside as", n.file+badSuffix), zap.String("used", former), zap.Error(err))
		return os.Rename(n.file, n.file+badSuffix)
	}
	return status.Errorf(status.Metadata, "metadata server: the snapshot %s cannot be read, and is left as it is: %w", n.file, err)
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// openRegular opens a file to read it. It does not wait for the other end of a pipe.
func openRegular(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", file)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// load reads a file into an empty store. A file that does not exist is an empty snapshot.
func load(file string, s *store) error {
	f, err := openRegular(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := json.NewDecoder(bufio.NewReader(f))
	lines.DisallowUnknownFields()
	var h head
	if err := lines.Decode(&h); err != nil {
		return fmt.Errorf("it does not start as one: %w", err)
	}
	if h.Format != format || h.Version != 1 || h.Entries < 0 {
		return fmt.Errorf("it is %.40q, version %d, with %d entries, not %q, version 1", h.Format, h.Version, h.Entries, format)
	}
	for i := range h.Entries {
		var e entry
		if err := lines.Decode(&e); err != nil {
			return fmt.Errorf("entry %d of %d: %w", i+1, h.Entries, err)
		}
		if err := s.put(e.Key, e.Value, netip.Addr{}); err != nil {
			return fmt.Errorf("entry %d of %d: %w", i+1, h.Entries, err)
		}
	}
	if _, err := lines.Token(); err != io.EOF {
		return fmt.Errorf("something follows its %d entries", h.Entries)
	}
	return nil
}

// run writes changes, until close.
func (n *snapshot) run() {
	for {
		select {
		case <-n.store.changed:
		case <-n.closing:
			return
		}
		n.attempt()
		select {
		case <-time.After(pause):
		case <-n.closing:
			return
		}
	}
}

// attempt saves. After a failure it wakes run again. It logs the first failure in a row, and the first success after one.
func (n *snapshot) attempt() {
	before := n.final
	n.final = n.save()
	switch {
	case n.final != nil:
		n.store.wake()
		if before == nil {
			n.log.Error("metadata is in memory alone until its snapshot can be written again", zap.Error(n.final))
		}
	case before != nil:
		n.log.Warn("the metadata snapshot is written again", zap.String("file", n.file))
	}
}

// close writes the last changes. The store is frozen.
func (n *snapshot) close() error {
	n.once.Do(func() {
		close(n.closing)
		n.writer.Wait()
		n.final = n.save()
		if err := unlock(n.lock); err != nil && n.final == nil {
			n.final = status.Errorf(status.Metadata, "metadata server: the snapshot %s cannot be unlocked: %w", n.file, err)
		}
	})
	return n.final
}

// save writes the file, unless it is current.
func (n *snapshot) save() error {
	entries, version := n.store.view()
	if version == n.saved {
		return nil
	}
	if err := replace(n.file, entries); err != nil {
		n.failures.Add(1)
		return status.Errorf(status.Metadata, "metadata server: the snapshot %s cannot be written: %w", n.file, err)
	}
	n.saved = version
	return nil
}

// replace replaces a file by a new one with the entries, and keeps the one before as the former one. It follows no link: what
// is at the name of the new file is removed.
func replace(file string, entries map[string][]byte) error {
	if err := os.Remove(file + newSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(file+newSuffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(write(f, entries), f.Sync(), f.Close())
	if err == nil {
		err = keepFormer(file)
	}
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncFolder(filepath.Dir(file))
}

// keepFormer gives a file, if there is one, a second name as the former one. A file system without second names keeps none.
func keepFormer(file string) error {
	if !exists(file) {
		return nil
	}
	former := file + formerSuffix
	if err := os.Remove(former); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Link(file, former)
	return nil
}

func write(f io.Writer, entries map[string][]byte) error {
	buffer := bufio.NewWriter(f)
	lines := json.NewEncoder(buffer)
	if err := lines.Encode(head{Format: format, Version: 1, Entries: len(entries)}); err != nil {
		return err
	}
	for key, value := range entries {
		if err := lines.Encode(entry{key, value}); err != nil {
			return err
		}
	}
	return buffer.Flush()
}

// syncFolder writes a folder to the disk, so that a new name in it survives a crash of the machine.
func syncFolder(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
