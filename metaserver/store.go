package metaserver

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"unicode/utf8"
)

// refusal is an error of the store, with its status in HTTP.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// store holds the entries. Values are not changed once they are in it.
type store struct {
	maxKeys, maxValue, maxBytes int64

	changed chan struct{} // has an element when there are changes that the snapshot has not seen

	mu      sync.Mutex
	entries map[string][]byte
	size    int64  // bytes of keys and values
	version uint64 // counts changes
	frozen  bool
}

func newStore(o Options) *store {
	return &store{
		maxKeys: o.MaxKeys, maxValue: o.MaxValue, maxBytes: o.MaxBytes,
		changed: make(chan struct{}, 1), entries: map[string][]byte{},
	}
}

// checkKey refuses keys that are empty, too long, or no text.
func checkKey(key string) error {
	switch {
	case key == "":
		return refuse(http.StatusBadRequest, "a key is required")
	case len(key) > maxKey:
		return refuse(http.StatusRequestURITooLong, "the key has %d bytes, more than %d", len(key), maxKey)
	case !utf8.ValidString(key):
		return refuse(http.StatusBadRequest, "the key is not UTF-8")
	}
	return nil
}

// isUnique reports whether a key holds the address of an engine. Such an entry is not replaced: an engine that has found the
// owner dead removes it first.
func isUnique(key string) bool { return strings.Contains(key, "rpc_meta") }

func (s *store) get(key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.entries[key]
	if !ok {
		return nil, refuse(http.StatusNotFound, "metadata not found")
	}
	return value, nil
}

// put creates or replaces an entry, whose value it keeps.
func (s *store) put(key string, value []byte) error {
	if err := checkKey(key); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before, exists := s.entries[key]
	if exists && bytes.Equal(before, value) {
		return nil
	}
	size := s.size + int64(len(value)) - int64(len(before))
	if !exists {
		size += int64(len(key))
	}
	switch {
	case s.frozen:
		return errFrozen
	case exists && isUnique(key):
		return refuse(http.StatusBadRequest, "duplicate rpc_meta key: it holds another value, and is to be deleted first")
	case int64(len(value)) > s.maxValue:
		return s.tooLarge()
	case !exists && int64(len(s.entries)) >= s.maxKeys:
		return refuse(http.StatusInsufficientStorage, "there are %d keys, as many as may be", s.maxKeys)
	case size > s.maxBytes:
		return refuse(http.StatusInsufficientStorage, "keys and values would have %d bytes, more than %d", size, s.maxBytes)
	}
	s.entries[key] = value
	s.size = size
	s.touch()
	return nil
}

var errFrozen = refuse(http.StatusServiceUnavailable, "the server is being stopped")

func (s *store) tooLarge() error {
	return refuse(http.StatusRequestEntityTooLarge, "the value has more than %d bytes", s.maxValue)
}

func (s *store) remove(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.entries[key]
	switch {
	case !ok:
		return refuse(http.StatusNotFound, "metadata not found")
	case s.frozen:
		return errFrozen
	}
	delete(s.entries, key)
	s.size -= int64(len(key) + len(value))
	s.touch()
	return nil
}

// touch notes a change.
func (s *store) touch() {
	s.version++
	s.wake()
}

// wake makes the snapshot look for changes.
func (s *store) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// freeze refuses changes from now on.
func (s *store) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = true
}

// view is the entries at one moment, and how many changes led to them.
func (s *store) view() (entries map[string][]byte, version uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.entries), s.version
}

// usage is the number of keys, and the bytes of keys and values.
func (s *store) usage() (keys int, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries), s.size
}
