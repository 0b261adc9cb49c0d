package trace

import (
	"cmp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
)

const (
	// mostSteps is how many requests and copies of one batch are recorded. Of further ones only the number is known.
	mostSteps = 32
	// smallRequest is up to how many bytes requests are recorded together with others.
	smallRequest = 64 << 10
)

// Batch is the record of a batch, or of what was submitted to one since it ended the last time. Any goroutine may call its methods.
// nil records nothing.
type Batch struct {
	recorder     *Recorder
	next, before *Batch // under the recorder's lock
	number       uint64
	parent       string        // the span of the program that the batch belongs to, see Recorder.Begin
	began        time.Duration // when it was submitted; all times are by clock.Now

	full       atomic.Bool // it has mostSteps
	onlyNumber bool        // it is not recorded, but is under way
	leftOut    atomic.Uint64

	mu    sync.Mutex
	steps []step
	taken int           // requests and copies in them
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

// step is a request, or small ones that are sent together, or a copy.
type step struct {
	kind  Kind
	write bool
	where string // the device, or the peer of a copy
	bytes uint64

	began, ended time.Duration // ended is 0 while nothing of it has ended

	// Of requests.
	connection *Connection
	number     uint64        // of the first one, on the connection
	requests   uint64        // how many
	underWay   uint64        // of these
	lost       uint64        // of these: their connection ended before they were answered, or they are to be done in another way
	lostBytes  uint64        // of the lost ones
	sent       time.Duration // the last byte; 0 before that
	answered   time.Duration // the first status frame has come; 0 before that
}

// Begin begins the record of a batch. parent is the traceparent of the program's span that the batch belongs to; "" for none. It
// returns nil for a batch that is not recorded, since many others were a moment ago, unless its span is.
func (r *Recorder) Begin(number uint64, parent string, now time.Duration) *Batch {
	if r == nil || r.batchesLeft.used.Load() && !isSampled(parent) {
		return nil
	}
	b := &Batch{recorder: r, number: number, parent: parent, began: now}
	b.steps = b.room[:0]
	r.mu.Lock()
	b.next, b.before = &r.underWay, r.underWay.before
	b.before.next, b.next.before = b, b
	if r.slower == 0 {
		r.batchesLeft.spend(now)
	}
	r.mu.Unlock()
	r.file.touch()
	return b
}

// isSampled reports whether a traceparent is of a span that is recorded: its last digit has that flag as its lowest bit.
func isSampled(parent string) bool {
	return parent != "" && strings.ContainsRune("13579bdf", rune(parent[len(parent)-1]))
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
	if kept && r.slower > 0 {
		r.batchesLeft.spend(b.ended)
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
	const prefix = 8
	return r.identity[:min(prefix, len(r.identity))] + "-" + strconv.FormatUint(number, 10)
}

// add adds a step, and returns its number; 0 if it is left out. The lock is held.
func (b *Batch) add(s *step) int32 {
	if b.first == 0 || s.began < b.first {
		b.first = s.began
	}
	if b.taken == mostSteps || b.ended != 0 {
		b.leftOut.Add(1)
		return 0
	}
	b.steps = append(b.steps, *s)
	return b.took()
}

// took counts a request or a copy of the last step, and returns the step's number. The lock is held.
func (b *Batch) took() int32 {
	if b.taken++; b.taken == mostSteps {
		b.full.Store(true)
	}
	return int32(len(b.steps))
}

// Take notes that a request of the batch is about to be sent on a connection, and returns the number of the step. Requests that are
// sent together share a moment, and small ones a step. A nil connection records nothing.
func (c *Connection) Take(b *Batch, write bool, bytes uint64, now *Moment) int32 {
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
	at := now.get()
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.steps); n > 0 && bytes <= smallRequest && b.ended == 0 && b.taken < mostSteps {
		if s := &b.steps[n-1]; s.takes(c, write, at) {
			s.bytes += bytes
			s.requests++
			s.underWay++
			return b.took()
		}
	}
	return b.add(&step{
		kind: request, write: write, bytes: bytes, began: at, connection: c, number: c.requests, requests: 1, underWay: 1,
	})
}

// takes reports whether a small request, the last one of a connection so far, is a part of the step.
func (s *step) takes(c *Connection, write bool, at time.Duration) bool {
	return s.kind == request && s.connection == c && s.write == write && s.began == at && s.bytes <= s.requests*smallRequest &&
		s.number+s.requests == c.requests
}

// Sent notes that the last byte of a request was sent.
func (b *Batch) Sent(number int32, now *Moment) { b.note(number, sent, now, 0) }

// Answered notes that the status frame of a READ has come. That of a WRITE is its end.
func (b *Batch) Answered(number int32, now *Moment) { b.note(number, answered, now, 0) }

// Ended notes that all of a request has arrived.
func (b *Batch) Ended(number int32, now *Moment) { b.note(number, ended, now, 0) }

// Lost notes that a request of so many bytes will not end on its connection.
func (b *Batch) Lost(number int32, bytes uint64) {
	var now Moment
	b.note(number, lost, &now, bytes)
}

// what happens to a request.
type what int

const (
	sent what = iota
	answered
	ended
	lost
)

// note notes what happens to a request of a step. It does nothing for one that is left out.
func (b *Batch) note(number int32, happens what, now *Moment, bytes uint64) {
	if b == nil || number == 0 {
		return
	}
	at := now.get()
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
		s.answered = cmp.Or(s.answered, at)
	case ended:
		s.ended = at
		s.underWay--
	case lost:
		s.ended = at
		s.underWay--
		s.lost++
		s.lostBytes += bytes
	}
}

// Now is clock.Now where copies are recorded, and otherwise 0.
func (b *Batch) Now() time.Duration {
	if b == nil || b.full.Load() {
		return 0
	}
	return clock.Now()
}

// Copied notes copies that have just ended, as one step. where is the device or the peer, and began is by Now.
func (b *Batch) Copied(k Kind, where string, bytes uint64, began time.Duration) {
	if b == nil {
		return
	}
	if began == 0 || b.full.Load() {
		b.leftOut.Add(1)
		return
	}
	now := clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(&step{kind: k, where: where, bytes: bytes, began: began, ended: now})
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
