package metaserver

import (
	"bytes"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"kvferry/core/fair"
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

// store holds the entries. Values are not changed once they are in it. An entry counts in the share of the address that has
// created it.
type store struct {
	maxKeys, maxValue, maxBytes int64

	keys  *fair.Gate // one unit for each entry
	bytes *fair.Gate // those of keys and values

	changed chan struct{} // has an element when there are changes that the snapshot has not seen

	mu      sync.Mutex
	entries map[string]record
	version uint64 // counts changes
	frozen  bool
}

// record is an entry's value, and its units of the gates.
type record struct {
	value []byte
	key   *fair.Place
	bytes *fair.Place
}

func newStore(o Options) *store {
	return &store{
		maxKeys: o.MaxKeys, maxValue: o.MaxValue, maxBytes: o.MaxBytes,
		keys: fair.New(fair.Options{Limit: o.MaxKeys}), bytes: fair.New(fair.Options{Limit: o.MaxBytes}),
		changed: make(chan struct{}, 1), entries: map[string]record{},
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

// isUnique reports whether a key holds the address of an engine: PREFIX/rpc_meta/NAME. Such an entry is not replaced: an engine
// that has found the owner dead removes it first. The name of an engine may have rpc_meta in it, too.
func isUnique(key string) bool { return strings.Contains("/"+key, "/rpc_meta/") }

func (s *store) get(key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.entries[key]
	if !ok {
		return nil, refuse(http.StatusNotFound, "metadata not found")
	}
	return r.value, nil
}

// pageKeys and pageBytes are how many keys list returns, and of how many bytes. In JSON a byte takes six at most, and so a page
// less than the 1 MiB that clients read.
const pageKeys, pageBytes = 1000, 128 << 10

// list returns the first keys that begin with a prefix and come after a key, in their order. more says that there are further
// ones.
func (s *store) list(prefix, after string) (keys []string, more bool) {
	s.mu.Lock()
	all := make([]string, 0, len(s.entries))
	for key := range s.entries {
		if key > after && strings.HasPrefix(key, prefix) {
			all = append(all, key)
		}
	}
	s.mu.Unlock()
	slices.Sort(all)
	count, size := 0, 0
	for count < min(len(all), pageKeys) && size+len(all[count]) <= pageBytes {
		size += len(all[count])
		count++
	}
	return all[:count], count < len(all)
}

// put creates or replaces an entry of an address, and keeps the value. Entries of the zero address have no share but the
// limits.
func (s *store) put(key string, value []byte, from netip.Addr) error {
	if err := checkKey(key); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before, exists := s.entries[key]
	if exists && bytes.Equal(before.value, value) {
		return nil
	}
	size := s.bytes.Held() + int64(len(value)) - int64(len(before.value))
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
	after, err := s.account(before, int64(len(key)+len(value)), from)
	if err != nil {
		return refuse(http.StatusInsufficientStorage, "%v", err)
	}
	after.value = value
	s.entries[key] = after
	s.touch()
	return nil
}

// account takes units for an entry that an address creates, or changes those of one that exists.
func (s *store) account(r record, size int64, from netip.Addr) (record, error) {
	if r.bytes != nil {
		if err := r.bytes.Resize(size); err != nil {
			return r, fmt.Errorf("bytes of keys and values: %w", err)
		}
		return r, nil
	}
	key, err := s.keys.Enter(from, 1, nil)
	if err != nil {
		return r, fmt.Errorf("keys: %w", err)
	}
	content, err := s.bytes.Enter(from, size, nil)
	if err != nil {
		key.Leave()
		return r, fmt.Errorf("bytes of keys and values: %w", err)
	}
	return record{key: key, bytes: content}, nil
}

var errFrozen = refuse(http.StatusServiceUnavailable, "the server is being stopped")

func (s *store) tooLarge() error {
	return refuse(http.StatusRequestEntityTooLarge, "the value has more than %d bytes", s.maxValue)
}

func (s *store) remove(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.entries[key]
	switch {
	case !ok:
		return refuse(http.StatusNotFound, "metadata not found")
	case s.frozen:
		return errFrozen
	}
	delete(s.entries, key)
	r.key.Leave()
	r.bytes.Leave()
	s.touch()
	return nil
}

// reset empties the store, and then fills it.
func (s *store) reset(fill func() error) error {
	s.mu.Lock()
	for key, r := range s.entries {
		delete(s.entries, key)
		r.key.Leave()
		r.bytes.Leave()
	}
	s.mu.Unlock()
	return fill()
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
	entries = make(map[string][]byte, len(s.entries))
	for key, r := range s.entries {
		entries[key] = r.value
	}
	return entries, s.version
}

// usage is the number of keys, and the bytes of keys and values.
func (s *store) usage() (keys int, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries), s.bytes.Held()
}
