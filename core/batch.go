package core

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/metadata"
	"kvferry/core/staging"
	"kvferry/core/status"
)

// A transfer's states, in the order in which it passes them:
//
//  1. Engine.Submit makes a submission: a slice of tasks, owned by the batch, in which each task links to the next one
//     for the same segment.
//  2. The tasks of one segment go to its transport as a Work, which is cut and merged into byte ranges as the
//     transport likes.
//  3. The transport ends each range once, by Work.Settle. A task has ended when none of its bytes is outstanding:
//     Completed when every range was, else Failed or TimedOut.
//  4. The last task of the batch to end sends the batch's notifications, if there are any, then releases what the
//     batch pinned and calls who waits.

// Opcode says which way a request moves bytes. The values are those of the C interface.
type Opcode int32

const (
	Read  Opcode = 0 // from the segment into local memory
	Write Opcode = 1 // from local memory into the segment
)

func (o Opcode) String() string {
	if o == Read {
		return "READ"
	}
	return "WRITE"
}

// SegmentID names an opened segment.
type SegmentID int32

// LocalSegment is the engine's own segment.
const LocalSegment SegmentID = 0

// Request is one transfer. Its memory layout is that of the C interface's transfer_request_t.
type Request struct {
	Opcode Opcode
	Local  uintptr // address in this process
	Target SegmentID
	Remote uint64 // address in the segment's owner
	Length uint64 // bytes
}

// wraps reports whether one of the request's ranges reaches the end of the address space.
func (r *Request) wraps() bool {
	return uint64(r.Local)+r.Length < r.Length || r.Remote+r.Length < r.Length
}

// State is what a task has come to. The values are those of the C interface's STATUS_*.
type State uint32

const (
	Waiting   State = 0
	Completed State = 4
	TimedOut  State = 5
	Failed    State = 6
)

// ErrSliceTimeout is why a task is TimedOut: its time, MC_SLICE_TIMEOUT, was over.
var ErrSliceTimeout = errors.New("given up after MC_SLICE_TIMEOUT")

// ErrDiscarded is why the tasks of a batch that its owner discarded fail.
var ErrDiscarded = errors.New("given up by the caller")

// ErrClosed is why tasks fail whose engine is destroyed, and why a closed engine takes no calls.
var ErrClosed = errors.New("the engine is closed")

// ErrEarlierFailed is why a transfer in the order of a stream was not queued: one before it failed, when nobody waited.
var ErrEarlierFailed = errors.New("an earlier transfer in the order of a stream failed")

// ErrPartFailed ends the rest of a task of which a part has failed already, for a reason of its own.
var ErrPartFailed = errors.New("another part of it failed")

// errWraps is why a task fails that no memory could hold.
var errWraps = status.Errorf(status.InvalidArgument, "the range wraps around the address space")

// lost is or-ed into the state of a task that will fail, while some of its bytes are still outstanding.
const lost = 1 << 8

// Task is one request and what has become of it.
type Task struct {
	Request
	Next int32 // index of the next task of the same Work, or -1

	state       atomic.Uint32 // a State, or one with lost
	outstanding uint64        // bytes not settled; changed atomically once the batch has the task
}

// Summary is what a batch has come to, all its tasks in one look.
type Summary struct {
	Tasks, Completed, Failed, TimedOut uint64 // Failed counts the timed-out ones too
	Bytes                              uint64 // sum of the completed tasks' lengths
}

// Batch is a set of tasks that are waited for and freed together. Its methods may be called from any goroutine.
type Batch struct {
	id       uint64
	capacity int
	engine   *Engine
	made     time.Duration // by clock.Now

	ending  atomic.Int64 // tasks whose bytes are outstanding
	pending atomic.Int64 // tasks that have not ended; the last to end is counted after the notifications went out

	bytes atomic.Uint64 // that all tasks submitted so far are to move

	latest atomic.Pointer[submission] // set under mu
	feed   atomic.Pointer[feed]       // what is still to come, see feed.go; nil for most batches

	mu       sync.Mutex
	freed    bool
	tasks    int
	failed   bool
	err      error                 // why the first task failed
	notify   []pendingNotification // sent when all completed
	pins     []*Region             // local regions in use, some of them more than once, until nothing is pending
	timers   []*time.Timer         // MC_SLICE_TIMEOUT, one for each submission, until nothing is pending
	waiters  map[*func()]struct{}
	movement movement // see Progress

	delivery     context.Context // of the notifications; made when it is needed, until nothing is pending
	stopDelivery context.CancelFunc
}

type pendingNotification struct {
	to  SegmentID
	msg metadata.Notification
}

// submission is the tasks of one Submit.
type submission struct {
	batch    *Batch
	first    int           // task id of tasks[0]
	upToThis []*submission // of the batch, oldest first; nobody changes them
	tasks    []Task
	bytes    uint64 // sum of the lengths
	works    []*Work
	refused  []refusal
	empty    bool // some tasks have no bytes
	pins     pins // local regions in use; the batch's, once it has the submission
	cause    atomic.Pointer[error]

	// Room for what most submissions need, which then takes no allocation of its own.
	room struct {
		self [1]*submission
		task [1]Task
		work Work

		distribution distribution
		works        [1]*Work
		pins         [2]*Region
	}
}

// newSubmission is a submission of so many tasks, all of them zero.
func newSubmission(b *Batch, tasks int) *submission {
	s := &submission{batch: b}
	s.tasks = s.room.task[:]
	if tasks > 1 {
		s.tasks = make([]Task, tasks)
	}
	s.works = s.room.works[:0]
	s.pins = pins{regions: s.room.pins[:0], ranges: tasks}
	return s
}

// refusal is a task that goes to no transport, and why.
type refusal struct {
	task   int32
	reason error
}

func (s *submission) abort(cause error) { s.cause.CompareAndSwap(nil, &cause) }

func (s *submission) aborted() error {
	if cause := s.cause.Load(); cause != nil {
		return *cause
	}
	return nil
}

func (s *submission) lost(task int32) bool { return s.tasks[task].state.Load()&lost != 0 }

func (s *submission) settle(task int32, part uint64, err error) {
	s.batch.settle(&s.tasks[task], part, err)
}

// Work is the part of one submission that goes to one segment: the tasks from Head on, linked by Task.Next. Their local
// memory is host memory, or else all of it is on one device and they all go the same way.
type Work struct {
	Segment *Segment
	Tasks   []Task // not all of them belong to the work
	Head    int32
	Bytes   uint64 // sum of the lengths
	// Staged: the work is a chunk of a longer transfer of device memory, and other chunks are under way or about to come.
	// The thread that submits it waits for copies: the transport queues the work and lets another thread send it.
	Staged bool

	owner  owner
	tail   int32
	device *staging.Device // that the local memory is on; nil for host memory
	own    binding         // see Bind
	shared *binding        // that of the work which this is a part of; nil where it is none
}

// owner is who the ranges of a work are settled with: a submission, or a parcel, which carries a part of one. Tasks are
// named by their index.
type owner interface {
	aborted() error
	lost(task int32) bool
	settle(task int32, part uint64, err error)
}

// Aborted returns why the work is to be given up; nil while it is not. It takes a few nanoseconds.
func (w *Work) Aborted() error { return w.owner.aborted() }

// Lost reports whether a task will fail, whatever becomes of the rest of it. It takes a few nanoseconds.
func (w *Work) Lost(task int32) bool { return w.owner.lost(task) }

// settleAll ends all of a work no part of which has ended.
func (w *Work) settleAll(err error) { w.Settle(w.Head, 0, w.Bytes, err) }

// Settle ends a range of the work: length bytes that start skip bytes into task first and go on over the tasks that
// follow it in the work. err is nil when all of them are at their destination. Afterwards the transport does not touch
// the range's local memory.
func (w *Work) Settle(first int32, skip, length uint64, err error) {
	for i := first; length > 0; i = w.Tasks[i].Next {
		task := &w.Tasks[i]
		part := min(task.Length-skip, length)
		w.owner.settle(i, part, err)
		length -= part
		skip = 0
	}
}

// endUnmoved ends the tasks of a submission that are in no work.
func (b *Batch) endUnmoved(s *submission) {
	for _, r := range s.refused {
		b.settle(&s.tasks[r.task], s.tasks[r.task].Length, r.reason)
	}
	if !s.empty {
		return
	}
	for i := range s.tasks {
		if s.tasks[i].Length == 0 {
			b.end(&s.tasks[i])
		}
	}
}

// settle ends part bytes of a task.
func (b *Batch) settle(task *Task, part uint64, err error) {
	if err != nil {
		b.lose(task, err)
	}
	if atomic.AddUint64(&task.outstanding, -part) == 0 {
		b.end(task)
	}
}

func (b *Batch) lose(task *Task, err error) {
	final := Failed
	if errors.Is(err, ErrSliceTimeout) {
		final = TimedOut
	}
	if !task.state.CompareAndSwap(uint32(Waiting), uint32(final)|lost) {
		return
	}
	b.mu.Lock()
	first := !b.failed
	if first {
		b.failed = true
		b.err = fmt.Errorf("%v of %d bytes at %#x of segment %d (local %#x): %w",
			task.Opcode, task.Length, task.Remote, task.Target, task.Local, err)
	}
	reason := b.err
	b.mu.Unlock()
	if first {
		b.engine.reportFailure(b, reason)
	}
}

// end makes a task's state final. The last of the batch first sends the notifications.
func (b *Batch) end(task *Task) {
	if b.ending.Add(-1) == 0 {
		if ctx, messages := b.takeNotifications(); len(messages) > 0 {
			b.engine.deliver(ctx, messages, func() { b.finish(task) })
			return
		}
	}
	b.finish(task)
}

func (b *Batch) finish(task *Task) {
	if !task.state.CompareAndSwap(uint32(Waiting), uint32(Completed)) {
		task.state.Store(task.state.Load() &^ lost)
	}
	switch b.pending.Add(-1) {
	case 0:
		b.finishAll()
	case 1:
		if f := b.feed.Load(); f != nil {
			f.wake()
		}
	}
}

// finishAll releases what the batch held for its tasks and calls who waits.
func (b *Batch) finishAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pending.Load() != 0 {
		return // more was submitted meanwhile
	}
	unpinAll(b.pins)
	b.pins = nil
	for _, timer := range b.timers {
		timer.Stop()
	}
	b.timers = nil
	if b.delivery != nil {
		b.stopDelivery()
		b.delivery, b.stopDelivery = nil, nil
	}
	for f := range b.waiters {
		(*f)()
	}
	clear(b.waiters)
}

// takeNotifications returns what is to be sent now that all tasks have ended, nothing when one of them failed, and the
// context to send it in.
func (b *Batch) takeNotifications() (context.Context, []pendingNotification) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending.Load() != 0 {
		return nil, nil // more was submitted meanwhile
	}
	messages := b.notify
	b.notify = nil
	if b.failed || len(messages) == 0 {
		return nil, nil
	}
	return b.deliveryContext(), messages
}

// deliveryContext is what an abort ends the delivery of notifications by. The lock is held.
func (b *Batch) deliveryContext() context.Context {
	if b.delivery == nil {
		b.delivery, b.stopDelivery = context.WithCancel(b.engine.ctx)
	}
	return b.delivery
}

// ID is the batch's number, unique in the process.
func (b *Batch) ID() uint64 { return b.id }

// add appends the tasks of a submission, takes over its pins, and counts the tasks as pending.
func (b *Batch) add(s *submission, notify *pendingNotification) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.takes(len(s.tasks)); err != nil {
		return err
	}
	f := b.feed.Load()
	if err := f.givenUp(); err != nil {
		return err
	}
	if f != nil {
		f.rest -= uint64(len(s.tasks))
	}
	s.first = b.tasks
	b.tasks += len(s.tasks)
	before := b.all()
	if before == nil {
		before = s.room.self[:0]
	}
	s.upToThis = append(before, s)
	b.latest.Store(s)
	b.takePins(&s.pins)
	if notify != nil {
		b.notify = append(b.notify, *notify)
	}
	if timeout := b.engine.config.SliceTimeout; timeout > 0 {
		b.timers = append(b.timers, time.AfterFunc(timeout, func() { b.engine.expire(s) }))
	}
	b.bytes.Add(s.bytes)
	b.ending.Add(int64(len(s.tasks)))
	b.pending.Add(int64(len(s.tasks)))
	return nil
}

// takePins makes pins the batch's. mu is held.
func (b *Batch) takePins(p *pins) {
	if len(b.pins) == 0 {
		b.pins = p.regions
	} else {
		b.pins = append(b.pins, p.regions...)
	}
	p.regions = nil
}

// takes tells why the batch cannot hold n more requests, nil when it can. mu is held.
func (b *Batch) takes(n int) error {
	switch {
	case b.freed:
		return status.Errorf(status.InvalidArgument, "batch %d is freed", b.id)
	case n > b.capacity-b.tasks:
		return status.Errorf(status.TooManyRequests, "batch %d holds %d of %d requests; %d more do not fit",
			b.id, b.tasks, b.capacity, n)
	}
	return nil
}

// checkRoom is takes for a submission that is yet to be made: memory for it is spent only where it fits.
func (b *Batch) checkRoom(n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.takes(n)
}

// all returns the submissions so far, oldest first.
func (b *Batch) all() []*submission {
	if latest := b.latest.Load(); latest != nil {
		return latest.upToThis
	}
	return nil
}

// count returns the number of tasks submitted so far.
func (b *Batch) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tasks
}

// task finds a task by its id.
func (b *Batch) task(id int) (*Task, error) {
	submissions := b.all()
	after := sort.Search(len(submissions), func(i int) bool { return submissions[i].first > id })
	if after > 0 {
		if s := submissions[after-1]; id >= s.first && id-s.first < len(s.tasks) {
			return &s.tasks[id-s.first], nil
		}
	}
	return nil, status.Errorf(status.InvalidArgument, "batch %d has no task %d: it holds %d", b.id, id, b.count())
}

// Status returns a task's state and, when it is Completed, its length.
func (b *Batch) Status(id int) (State, uint64, error) {
	task, err := b.task(id)
	if err != nil {
		return Waiting, 0, err
	}
	state, bytes := task.look()
	return state, bytes, nil
}

func (t *Task) look() (State, uint64) {
	state := t.state.Load()
	switch {
	case state&lost != 0:
		return Waiting, 0
	case State(state) == Completed:
		return Completed, t.Length
	}
	return State(state), 0
}

// Summary counts the tasks by state. Requests that are still to be submitted count as tasks, and as failed once they never
// will be.
func (b *Batch) Summary() Summary {
	sum := b.unsubmitted()
	for _, s := range b.all() {
		for i := range s.tasks {
			state, bytes := s.tasks[i].look()
			sum.Tasks++
			sum.Bytes += bytes
			switch state {
			case Completed:
				sum.Completed++
			case TimedOut:
				sum.TimedOut++
				sum.Failed++
			case Failed:
				sum.Failed++
			}
		}
	}
	return sum
}

// unsubmitted counts the requests that a fed batch waits for, or waited for in vain.
func (b *Batch) unsubmitted() (sum Summary) {
	f := b.feed.Load()
	if f == nil {
		return sum
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	sum.Tasks = f.rest
	if f.ended {
		sum.Failed = f.rest
	}
	return sum
}

// Bytes is how many bytes all tasks submitted so far are to move.
func (b *Batch) Bytes() uint64 { return b.bytes.Load() }

// Err is why the first task that failed did; nil when none has.
func (b *Batch) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Done reports whether every task submitted so far has ended.
func (b *Batch) Done() bool { return b.pending.Load() == 0 }

// OnDone calls f once, as soon as no task of the batch is unfinished, perhaps before OnDone returns. f must not
// block nor call the batch. cancel undoes it: after cancel has returned, f is not running and will not be called.
func (b *Batch) OnDone(f func()) (cancel func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pending.Load() == 0 {
		f()
		return func() {}
	}
	key := &f
	if b.waiters == nil {
		b.waiters = make(map[*func()]struct{})
	}
	b.waiters[key] = struct{}{}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.waiters, key)
	}
}

// wait blocks until no task of the batch is unfinished, or returns false when that takes longer than the limit.
func (b *Batch) wait(limit time.Duration) bool {
	done := make(chan struct{})
	cancel := b.OnDone(func() { close(done) })
	defer cancel()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// abort marks every task that has not ended as given up; the transports then settle them. A delivery of notifications
// ends.
func (b *Batch) abort(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pending.Load() == 0 {
		return
	}
	for _, s := range b.all() {
		s.abort(cause)
	}
	if f := b.feed.Load(); f != nil {
		f.cancel(cause)
	}
	b.deliveryContext()
	b.stopDelivery()
}

// firstPinned returns one of the regions that the batch pins, or nil.
func (b *Batch) firstPinned(regions map[*Region]bool) *Region {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, pinned := range b.pins {
		if regions[pinned] {
			return pinned
		}
	}
	return nil
}

// free marks the batch as freed, or fails with status.BatchBusy.
func (b *Batch) free() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.freed:
		return status.Errorf(status.InvalidArgument, "batch %d is freed already", b.id)
	case b.pending.Load() != 0:
		return status.Errorf(status.BatchBusy, "batch %d has %d unfinished tasks", b.id, b.pending.Load())
	}
	b.freed = true
	return nil
}
