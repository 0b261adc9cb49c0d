package core

import (
	"errors"
	"iter"
	"math"

	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/metadata"
	"kvferry/core/staging"
	"kvferry/core/status"
)

// Planned is one transfer of a plan. A READ moves its runs of bytes from the segment, whose owner is the transfer's source, and
// a WRITE to the segment, whose owner is its destination.
//
//  1. Where all memory of this process is host memory, or on one device, the transfer is one task, and its transport gets its
//     patterns (submitTransfer). Those of a device pass through staging blocks (staged_parts.go).
//  2. Otherwise each run is a request (submitPlanned). At most so many are submitted at a time (feedPlanned).
type Planned struct {
	Opcode   Opcode
	Target   SegmentID
	Transfer *layout.Transfer
	Notify   *metadata.Notification // sent to the segment's owner when all of it has completed; nil for none
	Parent   string                 // see Transfer.Parent

	id uint64 // random
}

// keys are those of the offers that the memory of this process is of, and that of the segment's owner; zero for none.
func (p *Planned) keys() (local, remote layout.Key) {
	if p.Opcode == Read {
		return p.Transfer.DestinationKey, p.Transfer.SourceKey
	}
	return p.Transfer.SourceKey, p.Transfer.DestinationKey
}

// key is that of the offer that the memory of the segment's owner is of; zero for none.
func (p *Planned) key() layout.Key {
	_, remote := p.keys()
	return remote
}

// check refuses a transfer the wrong way round: an offer has addresses of another process, perhaps of a stranger's choice, and
// they are not to be taken for addresses of this one.
func (p *Planned) check() error {
	if err := p.Opcode.check(); err != nil {
		return err
	}
	if local, _ := p.keys(); local != (layout.Key{}) {
		return status.Errorf(status.InvalidArgument, "a %v moves memory of this process, and the plan has an offer in its place",
			p.Opcode.Verb())
	}
	return nil
}

// mostPlanned is how many requests of a plan are under way at a time, where the caller sets no limit.
const mostPlanned = 1 << 16

// maxPlanned is how many requests one transfer of a plan has at most. The tasks of a batch stay in memory until it is
// freed, about 70 bytes for each. A peer's layout decides how many there are: in the worst case one for each element.
const maxPlanned = 1 << 26

// errNotOneTask is why a transfer is to be made of requests.
var errNotOneTask = errors.New("the transfer of a plan is at several places")

// SubmitPlanned makes a batch and submits the transfer to it; on an error there is no batch. If it goes as requests, at most
// limit of them, or mostPlanned for a limit of 0, are submitted at a time: the next ones when these have completed, and none
// when one of them has failed.
func (e *Engine) SubmitPlanned(p Planned, limit int) (*Batch, error) {
	p.id = randomNumber()
	b, err := e.submitTransfer(p)
	if !errors.Is(err, errNotOneTask) {
		return b, err
	}
	if p.Transfer.Runs > maxPlanned {
		return nil, tooManyRuns(p.Transfer)
	}
	count := int(p.Transfer.Runs)
	b, err = e.AllocateBatch(count)
	if err != nil {
		return nil, err
	}
	b.parent = p.Parent
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

// submitTransfer makes a batch of one task. It fails with errNotOneTask if requests have to be made.
func (e *Engine) submitTransfer(p Planned) (*Batch, error) {
	if !e.takesTransfers(p.Target) {
		return nil, errNotOneTask
	}
	b, err := e.AllocateBatch(1)
	if err != nil {
		return nil, err
	}
	b.parent = p.Parent
	err = e.submit(b, 1, p.Notify, func(d *distribution) error { return d.transfer(&p) })
	if err != nil {
		return nil, inOrder(err, e.FreeBatch(b))
	}
	return b, nil
}

// feedTransfer submits the transfer for a feeder, as one task. It fails with errNotOneTask if requests have to be made.
func (e *Engine) feedTransfer(b *Batch, f *feed, p Planned) error {
	if !e.takesTransfers(p.Target) {
		return errNotOneTask
	}
	b.mu.Lock()
	requests := f.rest
	f.rest = 1
	b.mu.Unlock()
	err := e.submit(b, 1, p.Notify, func(d *distribution) error { return d.transfer(&p) })
	if errors.Is(err, errNotOneTask) {
		b.mu.Lock()
		f.rest = requests
		b.mu.Unlock()
	}
	return err
}

// takesTransfers reports whether a transfer of a plan to or from a segment may be one task. Within this process that is so while
// no memory of a device is registered.
func (e *Engine) takesTransfers(target SegmentID) bool {
	if target == LocalSegment {
		return !e.memory.hasDevices()
	}
	transports := e.installed()
	return len(transports) > 0 && transports[len(transports)-1].TakesTransfers()
}

// transfer makes a transfer of a plan the only task.
func (d *distribution) transfer(p *Planned) error {
	if err := p.check(); err != nil {
		return err
	}
	d.id, d.key = p.id, p.key()
	t := p.Transfer
	first := t.Parts().Run()
	local, remote := Sides(p.Opcode, &first)
	task := &d.tasks[0]
	task.Request = Request{
		Opcode: p.Opcode, Local: local.Base, Target: p.Target, Remote: uint64(remote.Base), Length: t.Bytes,
	}
	task.Next, task.outstanding = -1, t.Bytes
	on, err := d.pinTransfer(p)
	if err != nil {
		return err
	}
	way := route{target: p.Target, device: on}
	if on != nil {
		way.opcode = p.Opcode
	}
	w, err := d.work(way)
	if err != nil {
		return err
	}
	d.bytes += t.Bytes
	w.Transfer = t
	w.append(0)
	return nil
}

// pinTransfer pins the regions that share bytes with the memory of a transfer in this process. on is the device that all of it is
// on; nil for host memory. It fails with errNotOneTask if there is no such answer.
func (d *distribution) pinTransfer(p *Planned) (on *staging.Device, err error) {
	var all placement
	for pattern := range p.Transfer.Patterns() {
		memory, _ := Sides(p.Opcode, &pattern)
		if !d.pinStrided(memory, &all) {
			return nil, errNotOneTask
		}
	}
	return all.on, nil
}

// placement is where the memory seen so far is.
type placement struct {
	on   *staging.Device // nil for host memory
	seen bool
}

// takes adds memory. It returns false if it is at another place.
func (p *placement) takes(on *staging.Device) bool {
	same := !p.seen || p.on == on
	*p = placement{on, true}
	return same
}

// pinStrided pins the regions that share bytes with strided memory. It returns false if that is not at one place, with the memory
// before. It looks at parts of the memory only where different regions lie in it, or in its gaps.
func (d *distribution) pinStrided(memory hostmem.Strided, all *placement) bool {
	addr, length := memory.Bounds()
	bounds := Range{Addr: addr, Length: length}
	if region := d.engine.memory.pinHolder(bounds, &d.pins); region != nil {
		return all.takes(region.Device)
	}
	if !d.engine.memory.overlaps(bounds) {
		return all.takes(nil)
	}
	if memory.Count == 0 {
		on, err := d.engine.memory.pinOverlapping(bounds, &d.pins)
		return err == nil && all.takes(on)
	}
	outer, inner := memory.Axes[0], memory
	copy(inner.Axes[:], memory.Axes[1:])
	inner.Count--
	for range outer.Count {
		if !d.pinStrided(inner, all) {
			return false
		}
		inner.Base += uintptr(outer.Stride)
	}
	return true
}

// Sides are the memory of a pattern in this process, and at the owner of the segment. Their streams are the same bytes.
func Sides(op Opcode, p *layout.Pattern) (local, remote hostmem.Strided) {
	axes := p.Axes()
	source := hostmem.Strided{Base: uintptr(p.Source), Run: p.Run, Count: len(axes)}
	destination := hostmem.Strided{Base: uintptr(p.Destination), Run: p.Run, Count: len(axes)}
	for i, a := range axes {
		source.Axes[i] = hostmem.Axis{Count: a.Count, Stride: a.Source}
		destination.Axes[i] = hostmem.Axis{Count: a.Count, Stride: a.Destination}
	}
	if op == Read {
		return destination, source
	}
	return source, destination
}

// submitPlanned submits the next count requests.
func (e *Engine) submitPlanned(b *Batch, p Planned, runs *layout.Runs, count int, notify *metadata.Notification) error {
	return e.submit(b, count, notify, func(d *distribution) error {
		if err := p.check(); err != nil {
			return err
		}
		d.id, d.key = p.id, p.key()
		return p.fill(d, runs)
	})
}

// feedPlanned has a goroutine of the engine submit the requests, so many at a time, each when the ones before have
// completed.
func (e *Engine) feedPlanned(b *Batch, p Planned, runs *layout.Runs, limit int) error {
	if err := p.check(); err != nil {
		return err
	}
	if _, err := e.openTarget(p.Target, len(e.installed()) > 0); err != nil {
		return err
	}
	return e.feedBatch(b, int(p.Transfer.Runs), p.local(), func(f *feed) error { return e.feedRuns(b, f, p, runs, limit) })
}

// feedRuns submits the transfer for a feeder: as one task, or as requests, so many at a time. The last ones have the notification.
func (e *Engine) feedRuns(b *Batch, f *feed, p Planned, runs *layout.Runs, limit int) error {
	if p.id == 0 {
		p.id = randomNumber()
	}
	if err := e.feedTransfer(b, f, p); !errors.Is(err, errNotOneTask) {
		return err
	}
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
