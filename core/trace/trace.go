// Package trace records where the time of batches goes, and writes it to a file in Chrome's trace format.
//
//  1. Open makes the Recorder of an engine, and of the process's file. There is none while tracing is off: each place that records
//     has one branch then.
//  2. As the initiator: Recorder.Begin makes the record of a batch, unless many were recorded just now (allowance.go). Its requests
//     and copies are added while it is under way (batch.go). Batch.End keeps it among the last ones.
//  3. As the target: a Session records the requests that it serves (session.go).
//  4. A goroutine writes the file while there is something new, and at the end (file.go, chrome.go).
//  5. Engines have different clocks. The answer to a hello says how old the target is; Recorder.Met notes which moment that makes
//     the beginning of the target's age. `kvferry trace merge` aligns the files of several processes by that.
package trace

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"sync"
	"time"

	"kvferry/core/clock"
)

const (
	// servedPerBatch is how many requests of peers are kept for each batch that is.
	servedPerBatch = 16
	// mostClocks is how many engines a recorder knows the clocks of.
	mostClocks = 1024
	// drift is how far two clocks may move apart, of the time that passes.
	drift = 1e-5
)

// Recorder records the batches of one engine, and the requests that it serves. Any goroutine may call its methods. nil is a recorder
// that records nothing.
type Recorder struct {
	name, identity string
	slower         time.Duration // batches that take less are not kept
	file           *file

	batchesLeft allowance // of batches that are kept
	turnsLeft   allowance // of short answers as the target

	mu       sync.Mutex
	began    time.Duration // when the engine's age began, by clock.SinceBoot; 0 before it listens
	underWay Batch         // the anchor of a ring of those that have not ended
	batches  ring[*Batch]
	served   ring[Served]
	clocks   map[string]met // by identity
	closed   bool           // the engine has ended
	others   func(most int) []UnderWay
}

// met is what is known of another engine's clock.
type met struct {
	name  string
	zero  time.Duration // when the engine's age began, by this machine's clock.SinceBoot
	error time.Duration // by how much that may be wrong
	at    time.Duration // when it was measured
}

func newRecorder(name, identity string, o Options, f *file) *Recorder {
	r := &Recorder{name: name, identity: identity, slower: o.Slower, file: f, clocks: map[string]met{}}
	r.batches, r.served = newRing[*Batch](o.Batches), newRing[Served](o.Batches*servedPerBatch)
	r.underWay.next, r.underWay.before = &r.underWay, &r.underWay
	r.batchesLeft = allowance{most: o.Batches, size: sampleWindow}
	r.turnsLeft = allowance{most: o.Batches * turnsPerBatch, size: sampleWindow}
	r.others = o.UnderWay
	return r
}

// Listening notes when the engine's age began, by clock.SinceBoot.
func (r *Recorder) Listening(since time.Duration) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.began = since
}

// Met notes the age of another engine, which it told between two moments of clock.SinceBoot.
func (r *Recorder) Met(name, identity string, asked, answered, age time.Duration) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := met{name: name, zero: (asked+answered)/2 - age, error: (answered - asked) / 2, at: answered}
	before, known := r.clocks[identity]
	if known && now.error > before.error+time.Duration(float64(now.at-before.at)*drift) || !known && len(r.clocks) >= mostClocks {
		return
	}
	r.clocks[identity] = now
}

// Moment is when several things happen together. The clock is read when the first one of them is recorded. The zero value is ready
// to be used.
type Moment struct{ at time.Duration }

func (m *Moment) get() time.Duration {
	if m.at == 0 {
		m.at = clock.Now()
	}
	return m.at
}

// Connection is a connection of an initiator, as far as its requests are recorded. The carrier of the connection guards it.
type Connection struct {
	peer     string
	number   uint64 // among those of the initiator; 0 for one that began without a hello
	key      uint64 // see connectionKey
	requests uint64 // so far
}

// Connection begins to record the requests of a connection. origin and number are those of its hello; the number is 0 without one.
func (r *Recorder) Connection(peer string, origin [16]byte, number uint64) *Connection {
	if r == nil {
		return nil
	}
	return &Connection{peer: peer, number: number, key: connectionKey(origin, number)}
}

// connectionKey names a connection in the files of both sides. Nobody learns the origin by it, which only targets may know. It is
// 0 without a hello.
func connectionKey(origin [16]byte, number uint64) uint64 {
	if number == 0 {
		return 0
	}
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(origin[:], number))
	return binary.LittleEndian.Uint64(sum[:]) | 1
}

// requestKey names a request in the files of both sides. Connections serve requests in order, so both count them alike.
func requestKey(connection, number uint64) string {
	return strconv.FormatUint(connection, 16) + "-" + strconv.FormatUint(number, 10)
}

// ring has the last items that were put into it.
type ring[T any] struct {
	items []T // up to limit
	next  int // to be replaced, once there are as many
	limit int
}

func newRing[T any](limit int) ring[T] { return ring[T]{limit: limit} }

func (r *ring[T]) put(item T) {
	if len(r.items) < r.limit {
		r.items = append(r.items, item)
		return
	}
	r.items[r.next] = item
	r.next = (r.next + 1) % r.limit
}

// all returns a copy of the items, oldest first.
func (r *ring[T]) all() []T {
	return append(append(make([]T, 0, len(r.items)), r.items[r.next:]...), r.items[:r.next]...)
}
