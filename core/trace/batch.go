package trace

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
)

// mostSteps is how many requests and copies of one batch are recorded. Of further ones only the number is known.
const mostSteps = 32

// Batch is the record of a batch, or of what was submitted to one since it ended the last time. Any goroutine may call its methods.
// nil records nothing.
type Batch struct {
	recorder     *Recorder
	next, before *Batch // under the recorder's lock
	number       uint64
	parent       string        // the span of the program that the batch belongs to, see Recorder.Begin
	began        time.Duration // when it was submitted; all times are by clock.Now

	full    atomic.Bool // it has mostSteps
	leftOut atomic.Uint64

	mu    sync.Mutex
	steps []step
	first time.Duration // when its first bytes were taken from the queue; 0 while none were
	ended time.Duration // 0 while it is under way
	Outcome

	room [2]step // for most batches
}

// Outcome is what became of a batch.
type Outcome struct {
	Operation        string // read, write, or mixed
	Requests, Failed uint64
	Bytes            uint64 // of the requests that have completed
	Error            error  // why the first one failed
}

// Kind is what a step of a batch does.
type Kind uint8

// The kinds of steps.
const (
	request Kind = iota // on a connection
	CopyOut             // from a device into a staging block
	CopyIn              // from a staging block to a device
	Fetch               // from the memory of another process of this host
	Local               // within the process
)

func (k Kind) String() string {
	return [...]string{"request", "copy out", "copy in", "copy from the peer's process", "copy within the process"}[k]
}

// step is a request, or a copy.
type step struct {
	kind  Kind
	write bool
	lost  bool   // its connection ended before it was answered, or it is to be done in another way
	where string // the peer or the device
	bytes uint64

	began, ended time.Duration // ended is 0 while it is under way

	// Of a request.
	connection uint64        // its number
	key        uint64        // that of the connection, see connectionKey
	number     uint64        // on the connection
	sent       time.Duration // its last byte; 0 before that
	answered   time.Duration // its status frame has come; 0 before that
}

// Begin begins the record of a batch. parent is the traceparent of the program's span that the batch belongs to; "" for none.
func (r *Recorder) Begin(number uint64, parent string, now time.Duration) *Batch {
	if r == nil {
		return nil
	}
	b := &Batch{recorder: r, number: number, parent: parent, began: now}
	b.steps = b.room[:0]
	r.mu.Lock()
	b.next, b.before = &r.underWay, r.underWay.before
	b.before.next, b.next.before = b, b
	r.mu.Unlock()
	r.file.touch()
	return b
}

// End ends the record, and reports whether it is kept. Nothing is added afterwards.
func (b *Batch) End(now time.Duration, o Outcome) (kept bool) {
	b.mu.Lock()
	b.ended, b.Outcome = max(now, b.began), o
	b.mu.Unlock()
	r := b.recorder
	kept = b.ended-b.began >= r.slower
	r.mu.Lock()
	b.before.next, b.next.before = b.next, b.before
	b.next, b.before = nil, nil
	if kept {
		r.batches.put(b)
	}
	r.mu.Unlock()
	if kept {
		r.file.touch()
	}
	return kept
}

// ID names the batch in the file, and in metrics.
func (b *Batch) ID() string { return b.recorder.ID(b.number) }

// ID names a batch of that number in the file, and in metrics; "" where nothing is recorded.
func (r *Recorder) ID(number uint64) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("%.8s-%d", r.identity, number)
}

// add adds a step, and returns its number; 0 if it is left out. The lock is held.
func (b *Batch) add(s step) int32 {
	if b.first == 0 || s.began < b.first {
		b.first = s.began
	}
	if len(b.steps) == mostSteps || b.ended != 0 {
		b.leftOut.Add(1)
		return 0
	}
	b.steps = append(b.steps, s)
	if len(b.steps) == mostSteps {
		b.full.Store(true)
	}
	return int32(len(b.steps))
}

// Take notes that a request of the batch is about to be sent on a connection, and returns the number of the step. at is now, by
// Recorder.Now: requests that are sent together share a look at the clock. A nil connection records nothing.
func (c *Connection) Take(b *Batch, write bool, bytes uint64, at time.Duration) int32 {
	if c == nil {
		return 0
	}
	c.requests++
	if b == nil {
		return 0
	}
	if b.full.Load() {
		b.leftOut.Add(1)
		return 0
	}
	s := step{
		kind: request, write: write, where: c.peer, bytes: bytes, began: at,
		connection: c.number, key: c.key, number: c.requests,
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.add(s)
}

// Sent notes that the last byte of a request was sent.
func (b *Batch) Sent(number int32, at time.Duration) {
	if b != nil && number != 0 {
		b.note(number, sent, at)
	}
}

// Answered notes that the status frame of a READ has come. That of a WRITE is its end.
func (b *Batch) Answered(number int32, at time.Duration) {
	if b != nil && number != 0 {
		b.note(number, answered, at)
	}
}

// Ended notes that all of a request has arrived.
func (b *Batch) Ended(number int32, at time.Duration) {
	if b != nil && number != 0 {
		b.note(number, ended, at)
	}
}

// Lost notes that a request will not end on its connection.
func (b *Batch) Lost(number int32) {
	if b != nil && number != 0 {
		b.note(number, lost, clock.Now())
	}
}

// what happens to a request.
type what int

const (
	sent what = iota
	answered
	ended
	lost
)

func (b *Batch) note(number int32, happens what, at time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended != 0 {
		return
	}
	s := &b.steps[number-1]
	switch happens {
	case sent:
		s.sent = at
	case answered:
		s.answered = at
	case ended:
		s.ended = at
	case lost:
		s.ended, s.lost = at, true
	}
}

// Now is clock.Now where something is recorded, and otherwise 0.
func (b *Batch) Now() time.Duration {
	if b == nil {
		return 0
	}
	return clock.Now()
}

// Copied notes copies that have just ended. where is the device or the peer.
func (b *Batch) Copied(k Kind, where string, bytes uint64, began time.Duration) {
	if b == nil {
		return
	}
	now := clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(step{kind: k, where: where, bytes: bytes, began: began, ended: now})
}

// described is a copy of the record, for the file.
func (b *Batch) described() *Batch {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := &Batch{
		recorder: b.recorder, number: b.number, parent: b.parent, began: b.began, steps: append([]step(nil), b.steps...),
		first: b.first, ended: b.ended, Outcome: b.Outcome,
	}
	d.leftOut.Store(b.leftOut.Load())
	return d
}
