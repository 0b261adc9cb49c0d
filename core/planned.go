package core

import (
	"iter"
	"math"

	"kvferry/core/layout"
	"kvferry/core/metadata"
	"kvferry/core/status"
)

// Planned is the requests of one transfer of a plan, in its order: one request for each run of bytes that lies
// together on both sides. A READ moves them from the segment, whose owner is the transfer's source, and a WRITE to
// the segment, whose owner is its destination.
type Planned struct {
	Opcode   Opcode
	Target   SegmentID
	Transfer *layout.Transfer
	Notify   *metadata.Notification // sent to the segment's owner when all requests have completed; nil for none
}

// mostPlanned is how many requests of a plan are under way at a time, where the caller sets no limit.
const mostPlanned = 1 << 16

// maxPlanned is how many requests one transfer of a plan has at most. The tasks of a batch stay in memory until it is
// freed, about 70 bytes for each. A peer's layout decides how many there are: in the worst case one for each element.
const maxPlanned = 1 << 26

// SubmitPlanned makes a batch and submits all requests to it; on an error there is no batch. At most limit requests,
// or mostPlanned for a limit of 0, are submitted at a time: the next ones when these have completed, and none when
// one of them has failed.
func (e *Engine) SubmitPlanned(p Planned, limit int) (*Batch, error) {
	if p.Transfer.Runs > maxPlanned {
		return nil, tooManyRuns(p.Transfer)
	}
	count := int(p.Transfer.Runs)
	b, err := e.AllocateBatch(count)
	if err != nil {
		return nil, err
	}
	if limit <= 0 {
		limit = mostPlanned
	}
	runs := p.Transfer.Each()
	if count <= limit {
		err = e.submitPlanned(b, p, runs, count, p.Notify)
	} else {
		err = e.feedPlanned(b, p, runs, limit)
	}
	if err != nil {
		return nil, inOrder(err, e.FreeBatch(b))
	}
	return b, nil
}

func tooManyRuns(t *layout.Transfer) error {
	return status.Errorf(status.InvalidArgument,
		"the transfer of the plan has %d ranges, where one call takes %d: plan fewer tokens", t.Runs, maxPlanned)
}

// submitPlanned submits the next count requests.
func (e *Engine) submitPlanned(b *Batch, p Planned, runs *layout.Runs, count int, notify *metadata.Notification) error {
	return e.submit(b, count, notify, func(d *distribution) error { return p.fill(d, runs) })
}

// feedPlanned has a goroutine of the engine submit the requests, so many at a time, each when the ones before have
// completed.
func (e *Engine) feedPlanned(b *Batch, p Planned, runs *layout.Runs, limit int) error {
	if err := p.Opcode.check(); err != nil {
		return err
	}
	if _, err := e.openTarget(p.Target, len(e.installed()) > 0); err != nil {
		return err
	}
	return e.feedBatch(b, int(p.Transfer.Runs), p.local(), func(f *feed) error { return e.feedRuns(b, f, p, runs, limit) })
}

// feedRuns submits the requests for a feeder, so many at a time. The last ones have the notification.
func (e *Engine) feedRuns(b *Batch, f *feed, p Planned, runs *layout.Runs, limit int) error {
	for left := int(p.Transfer.Runs); left > 0; left -= limit {
		var notify *metadata.Notification
		if left <= limit {
			notify = p.Notify
		}
		if err := e.submitPlanned(b, p, runs, min(limit, left), notify); err != nil {
			return err
		}
		b.waitForParts(f)
		if err := b.Err(); err != nil {
			return err
		}
	}
	return nil
}

// local are the ranges of this process that the requests move.
func (p *Planned) local() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		var portion [128]layout.Run
		runs := p.Transfer.Each()
		for n := runs.Next(portion[:]); n > 0; n = runs.Next(portion[:]) {
			for i := range portion[:n] {
				if local, _ := p.sides(&portion[i]); !yield(Range{Addr: uintptr(local), Length: portion[i].Bytes}) {
					return
				}
			}
		}
	}
}

// sides are the addresses of a run in this process and in the segment's owner.
func (p *Planned) sides(run *layout.Run) (local, remote uint64) {
	if p.Opcode == Read {
		return run.Destination, run.Source
	}
	return run.Source, run.Destination
}

// fill writes the next runs into the tasks, and distributes them, pattern by pattern.
func (p *Planned) fill(d *distribution, runs *layout.Runs) error {
	var portion [128]layout.Run
	for done := 0; done < len(d.tasks); {
		count := runs.Next(portion[:min(len(portion), len(d.tasks)-done)])
		within := p.fillTasks(d.tasks[done:done+count], portion[:count], int32(done))
		if err := d.run(done, count, within); err != nil {
			return err
		}
		done += count
	}
	return nil
}

// fillTasks writes runs of one length into tasks, the first of which has index first, and links them. It returns the
// range that holds all of their local memory.
func (p *Planned) fillTasks(tasks []Task, runs []layout.Run, first int32) Range {
	lowest, highest, length := uint64(math.MaxUint64), uint64(0), runs[0].Bytes
	for i := range tasks {
		task := &tasks[i]
		local, remote := p.sides(&runs[i])
		lowest, highest = min(lowest, local), max(highest, local)
		task.Opcode, task.Local, task.Target, task.Remote, task.Length = p.Opcode, uintptr(local), p.Target, remote, length
		task.Next, task.outstanding = first+int32(i)+1, length
	}
	return Range{Addr: uintptr(lowest), Length: highest - lowest + length}
}
