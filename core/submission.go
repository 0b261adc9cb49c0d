package core

import (
	"sync/atomic"

	"kvferry/core/layout"
	"kvferry/core/staging"
)

// submission is the tasks of one call of Engine.Submit.
type submission struct {
	batch       *Batch
	first       int           // task id of tasks[0]
	submissions []*submission // of the batch up to this one, oldest first; never changed
	tasks       []Task
	bytes       uint64 // sum of the lengths
	works       []*Work
	refused     []refusal
	empty       bool                  // some tasks have no bytes
	pins        pins                  // local regions in use, before the batch takes them over
	id          uint64                // see Work.ID
	key         layout.Key            // see Work.Key
	cause       atomic.Pointer[error] // why the submission is given up

	// room is memory for what most submissions need, in the same allocation.
	room struct {
		self [1]*submission
		task [1]Task
		work Work

		distribution distribution
		works        [1]*Work
		pins         [2]*Region
	}
}

// newSubmission makes a submission of so many zero tasks.
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

// refusal is a task that no transport gets, and why.
type refusal struct {
	task   int32
	reason error
}

// newWork makes a work without tasks.
func (s *submission) newWork(segment *Segment, device *staging.Device) *Work {
	w := &s.room.work
	if len(s.works) > 0 {
		w = &Work{}
	}
	w.Segment, w.Tasks, w.Head, w.owner, w.device = segment, s.tasks, -1, s, device
	w.ID, w.Key = s.id, s.key
	w.own.begin(segment)
	s.works = append(s.works, w)
	return w
}

func (s *submission) abort(cause error) { s.cause.CompareAndSwap(nil, &cause) }

func (s *submission) aborted() error {
	if cause := s.cause.Load(); cause != nil {
		return *cause
	}
	return nil
}

func (s *submission) willFail(task int32) bool { return s.tasks[task].state.Load()&lost != 0 }

func (s *submission) settle(task int32, part uint64, err error) {
	s.batch.settle(&s.tasks[task], part, err)
}
