package core

import (
	"context"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/metadata"
	"kvferry/core/status"
	"kvferry/core/trace"
)

// A transfer passes these states:
//
//  1. Engine.Submit makes a submission: a slice of tasks, which the batch owns. Each task links to the next one for the same
//     segment (submission.go).
//  2. The tasks for one segment go to its transport as a Work, which the transport cuts and merges into byte ranges as it
//     likes (work.go).
//  3. The transport ends each range once, by Work.Settle. A task has ended when none of its bytes is outstanding:
//     it is Completed when every range was, else Failed or TimedOut (settle.go).
//  4. The last task of the batch to end sends the batch's notifications, if there are any. Then it releases what the batch
//     pinned and calls the functions that OnDone was given.

// Batch is a set of tasks that are waited for and freed together. Its methods may be called from any goroutine.
type Batch struct {
	id       uint64
	capacity int
	engine   *Engine
	parent   string        // see Transfer.Parent; set before anything is submitted
	made     time.Duration // when a fed batch was made, by clock.Now; 0 for others

	ending  atomic.Int64 // tasks with outstanding bytes
	pending atomic.Int64 // tasks that have not ended. The last one ends after the notifications were sent

	bytes atomic.Uint64 // sum of the lengths of all tasks submitted so far

	latest atomic.Pointer[submission] // set under mu
	feed   atomic.Pointer[feed]       // the requests that are still to be submitted, see feed.go; nil for most batches

	mu       sync.Mutex
	freed    bool
	tasks    int
	failed   bool
	err      error                 // why the first task failed
	failure  *failure              // see Failure; nil while no task has failed
	notify   []pendingNotification // sent when all tasks have completed
	waiters  map[*func()]struct{}  // see OnDone
	began    time.Duration         // when the first of the tasks that are not counted was submitted, by clock.Now; 0 without any
	trace    *trace.Batch          // of the tasks that are not counted; nil without any, and while tracing is off
	counted  int                   // submissions whose end is counted, see count.go
	movement movement              // see Progress
	start    time.Duration         // when the first task was submitted, by clock.Now; 0 before
	ended    time.Duration         // when the last task that was submitted ended; 0 before

	// Kept while tasks are pending.
	pins         []*Region       // local regions in use; a region may be in it more than once
	timers       []*time.Timer   // MC_SLICE_TIMEOUT, one for each submission
	delivery     context.Context // for the delivery of notifications; nil before it is needed
	stopDelivery context.CancelFunc
}

type pendingNotification struct {
	to  SegmentID
	msg metadata.Notification
}

// ID is the batch's number, unique in the process.
func (b *Batch) ID() uint64 { return b.id }

// checkRoom says why the batch cannot take n more requests; nil when it can. Engine.submit asks before it allocates memory for
// them.
func (b *Batch) checkRoom(n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.checkRoomLocked(n)
}

// checkRoomLocked is checkRoom for a caller that holds mu.
func (b *Batch) checkRoomLocked(n int) error {
	switch {
	case b.freed:
		return status.Errorf(status.InvalidArgument, "batch %d is freed", b.id)
	case n > b.capacity-b.tasks:
		return status.Errorf(status.TooManyRequests, "batch %d holds %d of %d requests; %d more do not fit",
			b.id, b.tasks, b.capacity, n)
	}
	return nil
}

// add appends the tasks of a submission, takes over its pins, and counts the tasks as pending.
func (b *Batch) add(s *submission, notify *pendingNotification) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.checkRoomLocked(len(s.tasks)); err != nil {
		return err
	}
	f := b.feed.Load()
	if err := f.givenUp(); err != nil {
		return err
	}
	if f != nil {
		f.rest -= uint64(len(s.tasks))
	}
	now, sinceBoot := clock.NowAndAtMostSinceBoot()
	if b.began == 0 {
		b.began = now
		b.trace = b.engine.trace.Begin(b.id, b.parent, now)
	}
	for _, w := range s.works {
		w.own.since, w.trace = sinceBoot, b.trace
	}
	if b.start == 0 {
		b.start = b.began
	}
	s.first = b.tasks
	b.tasks += len(s.tasks)
	before := b.all()
	if before == nil {
		before = s.room.self[:0]
	}
	s.submissions = append(before, s)
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

// takePins moves pins to the batch. mu is held.
func (b *Batch) takePins(p *pins) {
	if len(b.pins) == 0 {
		b.pins = p.regions
	} else {
		b.pins = append(b.pins, p.regions...)
	}
	p.regions = nil
}

// all returns the submissions so far, oldest first.
func (b *Batch) all() []*submission {
	if latest := b.latest.Load(); latest != nil {
		return latest.submissions
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
	state, bytes := task.result()
	return state, bytes, nil
}

// Summary is how many tasks of a batch are in which state, all counted at once.
type Summary struct {
	Tasks, Completed, Failed, TimedOut uint64 // Failed counts the timed-out ones too
	Bytes                              uint64 // sum of the completed tasks' lengths
}

// Summary counts the tasks by state. Requests that are still to be submitted count as tasks, and as failed tasks once it is
// known that they will not be submitted.
func (b *Batch) Summary() Summary {
	sum, submissions := b.unsubmitted()
	for _, s := range submissions {
		for i := range s.tasks {
			state, bytes := s.tasks[i].result()
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

// unsubmitted counts the requests of a fed batch that were not submitted, and returns the submissions with the others.
func (b *Batch) unsubmitted() (sum Summary, submissions []*submission) {
	f := b.feed.Load()
	if f == nil {
		return sum, b.all()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	sum.Tasks = f.rest
	if f.ended {
		sum.Failed = f.rest
	}
	return sum, b.all()
}

// Bytes is the sum of the lengths of all tasks submitted so far.
func (b *Batch) Bytes() uint64 { return b.bytes.Load() }

// Err is why the first task that failed has failed; nil when none has.
func (b *Batch) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Done reports whether every task submitted so far has ended.
func (b *Batch) Done() bool { return b.pending.Load() == 0 }

// OnDone calls f once, as soon as no task of the batch is unfinished, perhaps before OnDone returns. f must neither block nor
// call the batch. After cancel has returned, f is not running and will not be called.
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
