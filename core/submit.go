package core

import (
	"errors"
	"iter"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/metadata"
	"kvferry/core/staging"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// lastBatch is the number of the latest batch of the process: ids are never used again, so that one that belongs to a
// freed batch or to another engine is recognised.
var lastBatch atomic.Uint64

// AllocateBatch makes a batch that takes up to capacity requests.
func (e *Engine) AllocateBatch(capacity int) (*Batch, error) {
	if e.ctx.Err() != nil {
		return nil, closedError()
	}
	b := &Batch{id: lastBatch.Add(1), capacity: capacity, engine: e, made: clock.Now()}
	e.batches.Store(b.id, b)
	return b, nil
}

// Batch finds a batch by its id.
func (e *Engine) Batch(id uint64) (*Batch, error) {
	if b, ok := e.batches.Load(id); ok {
		return b.(*Batch), nil
	}
	return nil, status.Errorf(status.InvalidArgument, "there is no batch %d: it was never allocated here, or is freed", id)
}

// Submit adds the requests to the batch and starts them; on an error nothing was added. reqs is not kept, the memory
// that it names is in use until the tasks have ended. notify may be nil; else it goes to the first request's segment
// after all tasks of the batch completed.
func (e *Engine) Submit(b *Batch, reqs []Request, notify *metadata.Notification) error {
	return e.submit(b, len(reqs), notify, func(d *distribution) error {
		for i := range d.tasks {
			d.tasks[i].Request = reqs[i]
		}
		return d.eachTask(0, len(d.tasks))
	})
}

// Arrays are requests with one opcode and segment: one request for each index of the arrays, which are of one length.
type Arrays struct {
	Opcode  Opcode
	Target  SegmentID
	Local   []uint64 // addresses in this process
	Remote  []uint64 // addresses in the segment's owner
	Lengths []uint64 // bytes
}

// local are the ranges of this process that the requests move.
func (a *Arrays) local() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for i, addr := range a.Local {
			if !yield(Range{Addr: uintptr(addr), Length: a.Lengths[i]}) {
				return
			}
		}
	}
}

// SubmitArrays is Submit for requests in arrays, which are not kept either.
func (e *Engine) SubmitArrays(b *Batch, a *Arrays, notify *metadata.Notification) error {
	return e.submit(b, len(a.Local), notify, func(d *distribution) error {
		for i := range d.tasks {
			d.tasks[i].Request = Request{
				Opcode: a.Opcode, Local: uintptr(a.Local[i]), Target: a.Target, Remote: a.Remote[i], Length: a.Lengths[i],
			}
		}
		return d.eachTask(0, len(d.tasks))
	})
}

// submit is Submit of so many requests, which fill writes into the tasks and distributes.
func (e *Engine) submit(b *Batch, requests int, notify *metadata.Notification, fill func(*distribution) error) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	if requests == 0 {
		if notify != nil {
			return status.Errorf(status.InvalidArgument, "a notification without requests has no segment to go to")
		}
		return nil
	}
	if err := b.checkRoom(requests); err != nil {
		return err
	}
	transports := e.installed()
	s := newSubmission(b, requests)
	d := &s.room.distribution
	*d = distribution{submission: s, engine: e, haveTransport: len(transports) > 0}
	err := fill(d)
	*d = distribution{}
	if err != nil {
		unpinAll(s.pins.regions)
		return err
	}
	var message *pendingNotification
	if notify != nil {
		message = &pendingNotification{to: s.tasks[0].Target, msg: *notify}
	}
	if err := b.add(s, message); err != nil {
		unpinAll(s.pins.regions)
		return err
	}
	if e.ctx.Err() != nil { // the engine was closed before the batch was seen to hold these tasks
		s.abort(ErrClosed)
	}
	for _, w := range s.works {
		switch {
		case w.Head < 0: // no task of it is to be moved
		case w.Segment == e.local.segment:
			e.local.Submit(w)
		case w.device != nil:
			e.stager.submit(w, transports[len(transports)-1])
		default:
			transports[len(transports)-1].Submit(w)
		}
	}
	b.endUnmoved(s)
	return nil
}

// route is what the tasks of a work have in common.
type route struct {
	target SegmentID
	device *staging.Device // that their local memory is on; nil for host memory
	opcode Opcode          // where there is a device
}

// distribution hands the tasks of a submission to works. Each task is handed over once, in the order of their indices.
type distribution struct {
	*submission
	engine        *Engine
	haveTransport bool
	last          *Work
	lastRoute     route
	byRoute       map[route]*Work // made when there is a second one
}

// work finds the work of a route.
func (d *distribution) work(way route) (*Work, error) {
	if d.last != nil && d.lastRoute == way {
		return d.last, nil
	}
	if d.last != nil && d.byRoute == nil {
		d.byRoute = map[route]*Work{d.lastRoute: d.last}
	}
	w := d.byRoute[way]
	if w == nil {
		segment, err := d.engine.target(way.target, d.haveTransport)
		if err != nil {
			return nil, err
		}
		w = d.newWork(segment, way.device)
		if d.byRoute != nil {
			d.byRoute[way] = w
		}
	}
	d.last, d.lastRoute = w, way
	return w, nil
}

// eachTask checks count tasks from first on, links them by route to works, and pins their local regions. Those that are
// empty, and those that are out of the question, are in no work.
func (d *distribution) eachTask(first, count int) error {
	for i := first; i < first+count; i++ {
		task := &d.tasks[i]
		if task.Opcode != Read && task.Opcode != Write {
			return status.Errorf(status.InvalidArgument, "request %d has opcode %d", i, task.Opcode)
		}
		task.Next, task.outstanding = -1, task.Length
		d.bytes += task.Length
		way := route{target: task.Target}
		var mixed error
		way.device, mixed = d.engine.memory.pinOverlapping(Range{Addr: task.Local, Length: task.Length}, &d.pins)
		if way.device != nil {
			way.opcode = task.Opcode
		}
		w, err := d.work(way)
		if err != nil {
			return err
		}
		switch {
		case task.Length == 0:
			d.empty = true
		case task.wraps() || w.Bytes+task.Length < w.Bytes:
			d.refused = append(d.refused, refusal{int32(i), errWraps})
		case mixed != nil:
			d.refused = append(d.refused, refusal{int32(i), mixed})
		default:
			w.append(int32(i))
		}
	}
	return nil
}

// run is eachTask for tasks with one opcode, target and length, none of which is empty or wraps around, and which fill has
// linked by Next. Where one region holds within, all of their local memory, they are handed over as they are.
func (d *distribution) run(first, count int, within Range) error {
	task := &d.tasks[first]
	over, bytes := bits.Mul64(uint64(count), task.Length)
	region := d.engine.memory.pinHolder(within, &d.pins)
	if region == nil || over != 0 || task.Opcode != Read && task.Opcode != Write {
		return d.eachTask(first, count)
	}
	way := route{target: task.Target, device: region.Device}
	if way.device != nil {
		way.opcode = task.Opcode
	}
	w, err := d.work(way)
	if err != nil {
		return err
	}
	if w.Bytes+bytes < w.Bytes {
		return d.eachTask(first, count)
	}
	d.bytes += bytes
	w.appendRun(int32(first), int32(first+count-1), bytes)
	return nil
}

// newWork makes a work of none of the tasks yet.
func (s *submission) newWork(segment *Segment, device *staging.Device) *Work {
	w := &s.room.work
	if len(s.works) > 0 {
		w = &Work{}
	}
	w.Segment, w.Tasks, w.Head, w.owner, w.device = segment, s.tasks, -1, s, device
	w.own.begin(segment)
	s.works = append(s.works, w)
	return w
}

func (w *Work) append(i int32) { w.appendRun(i, i, w.Tasks[i].Length) }

// appendRun appends tasks that are linked already, from first to last, and have so many bytes.
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

// target finds the segment of a request.
func (e *Engine) target(id SegmentID, haveTransport bool) (*Segment, error) {
	if id == LocalSegment {
		return e.local.segment, nil
	}
	if !haveTransport {
		return nil, status.Errorf(status.NotSupportedTransport, "no transport is installed")
	}
	segment, err := e.segment(id)
	if err == nil && e.config.DisableMetaCache {
		e.refresh(segment)
	}
	return segment, err
}

// expire gives up a submission whose time, MC_SLICE_TIMEOUT, is over.
func (e *Engine) expire(s *submission) {
	s.abort(ErrSliceTimeout)
	e.abortTransports()
}

func (e *Engine) abortTransports() {
	e.stager.abort()
	for _, t := range e.installed() {
		t.Abort()
	}
}

// Assist is for a caller that is about to wait for a batch on one segment: it helps to finish a short one, for a
// fraction of a millisecond, which is faster than to be woken. The batch may be unfinished when it returns.
func (e *Engine) Assist(b *Batch, id SegmentID) {
	const short = 256 << 10 // bytes
	if b.bytes.Load() > short || b.Done() {
		return
	}
	all := e.installed()
	if s := e.segments.numbered(id); s != nil && len(all) > 0 {
		all[len(all)-1].Assist(s, b.Done)
	}
}

// FreeBatch frees a batch all of whose tasks have ended; status.BatchBusy before that.
func (e *Engine) FreeBatch(b *Batch) error {
	if err := b.free(); err != nil {
		return err
	}
	e.batches.Delete(b.id)
	return nil
}

// CancelBatch gives up what is unfinished, and waits for nothing: the batch, which stays its owner's, ends when nothing
// touches its memory any more. Its tasks that have completed by then stay so.
func (e *Engine) CancelBatch(b *Batch) {
	if !b.Done() {
		b.abort(ErrDiscarded)
		e.abortTransports()
	}
}

// DiscardBatch gives up what is unfinished, waits until nothing touches its memory any more, and frees the batch. What is
// stuck in a system call or on a device may go on using the memory: the error, a status.BatchBusy with ErrInUse in it, says
// so after a while, and the batch is freed when that has ended.
func (e *Engine) DiscardBatch(b *Batch) error {
	if !b.Done() {
		e.CancelBatch(b)
		if !b.wait(b.endingTime()) {
			b.OnDone(func() { go e.FreeBatch(b) }) // fails where somebody else has freed it
			return status.Errorf(status.BatchBusy, "batch %d was given up, but its memory is %w: %s", b.id, ErrInUse, b.unfinished())
		}
	}
	return e.FreeBatch(b)
}

// endingTime is how long a batch that is given up may take to end. A copy of a device that does not end is given up by the
// device's staging, a while after Config.ProgressTimeout.
func (b *Batch) endingTime() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.pins, func(r *Region) bool { return r.Device != nil }) {
		return b.engine.ending + b.engine.config.ProgressTimeout*5/4
	}
	return b.engine.ending
}

// reportFailure logs a batch's first failure; the rest are in the tasks' states. Transports settle under locks of their
// own, which is no harm: to log waits for nothing.
func (e *Engine) reportFailure(b *Batch, reason error) {
	if errors.Is(reason, ErrDiscarded) || errors.Is(reason, ErrClosed) {
		e.log.Info("transfer given up", zap.Uint64("batch", b.id), zap.Error(reason))
		return
	}
	e.log.Warn("transfer failed", zap.Uint64("batch", b.id), zap.Error(reason))
}
