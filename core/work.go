package core

import (
	"kvferry/core/layout"
	"kvferry/core/staging"
	"kvferry/core/trace"
)

// Work is the part of one submission that goes to one segment: the tasks from Head on, linked by Task.Next. Their local
// memory is host memory, or else all of it is on one device and they all go the same way.
type Work struct {
	Segment *Segment
	Tasks   []Task // not all of them belong to the work
	Head    int32
	Bytes   uint64 // sum of the lengths
	// Transfer is what moves instead of a range, if the work is a transfer of a plan: then it has one task, whose length is that
	// of all runs. nil for other works.
	Transfer *layout.Transfer
	ID       uint64     // of the transfer of a plan; the same for all works of one. 0 for other works
	Key      layout.Key // of the offer that the peer's memory is of; zero for none
	// Staged: the work is a chunk of a longer transfer of device memory, and other chunks are under way or about to come.
	// The thread that submits it waits for copies: the transport queues the work and lets another thread send it.
	Staged bool

	owner  owner
	tail   int32           // the last task
	device *staging.Device // the device that the local memory is on; nil for host memory
	own    binding         // see Bind
	shared *binding        // for a chunk: the binding of the whole work
	trace  *trace.Batch    // nil while tracing is off
}

// owner is told what became of the ranges of a work: a submission, or a chunk that carries a part of one. Tasks are named by
// their index.
type owner interface {
	aborted() error
	willFail(task int32) bool
	settle(task int32, part uint64, err error)
}

func (w *Work) append(i int32) { w.appendRun(i, i, w.Tasks[i].Length) }

// appendRun appends tasks that are already linked, from first to last, with so many bytes together.
func (w *Work) appendRun(first, last int32, bytes uint64) {
	if w.Head < 0 {
		w.Head = first
	} else {
		w.Tasks[w.tail].Next = first
	}
	w.tail = last
	w.Tasks[last].Next = -1
	w.Bytes += bytes
}

// Aborted returns why the work is to be given up; nil while it is not. It takes a few nanoseconds.
func (w *Work) Aborted() error { return w.owner.aborted() }

// WillFail reports whether a part of a task has failed. The rest of it need not be moved. It takes a few nanoseconds.
func (w *Work) WillFail(task int32) bool { return w.owner.willFail(task) }

// Trace is the record of the work's batch; nil while tracing is off.
func (w *Work) Trace() *trace.Batch { return w.trace }

// settleAll ends all of a work. No part of it has ended yet.
func (w *Work) settleAll(err error) { w.Settle(w.Head, 0, w.Bytes, err) }

// Settle ends a range of the work: length bytes, from skip bytes into task first on, over the tasks that follow it in the
// work. Of a transfer of a plan only the length matters. err is nil when all of them are at their destination. Afterwards the transport does not touch the range's local
// memory.
func (w *Work) Settle(first int32, skip, length uint64, err error) {
	for i := first; length > 0; i = w.Tasks[i].Next {
		task := &w.Tasks[i]
		part := min(task.Length-skip, length)
		w.owner.settle(i, part, err)
		length -= part
		skip = 0
	}
}
