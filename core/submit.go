package core

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

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
	b := &Batch{id: lastBatch.Add(1), capacity: capacity, engine: e, made: time.Now()}
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
	return e.submit(b, len(reqs), notify, func(tasks []Task) {
		for i := range tasks {
			tasks[i].Request = reqs[i]
		}
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

// SubmitArrays is Submit for requests in arrays, which are not kept either.
func (e *Engine) SubmitArrays(b *Batch, a *Arrays, notify *metadata.Notification) error {
	return e.submit(b, len(a.Local), notify, func(tasks []Task) {
		for i := range tasks {
			tasks[i].Request = Request{
				Opcode: a.Opcode, Local: uintptr(a.Local[i]), Target: a.Target, Remote: a.Remote[i], Length: a.Lengths[i],
			}
		}
	})
}

// submit is Submit of so many requests, which fill writes into tasks.
func (e *Engine) submit(b *Batch, requests int, notify *metadata.Notification, fill func([]Task)) error {
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
	fill(s.tasks)
	if err := e.distribute(s, len(transports) > 0); err != nil {
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

// distribute checks the submission's tasks, links them by route to works, and pins their local regions. Those that are
// empty, and those that are out of the question, are in no work.
func (e *Engine) distribute(s *submission, haveTransport bool) error {
	var last *Work
	var lastRoute route
	var byRoute map[route]*Work // made when there is a second one
	for i := range s.tasks {
		task := &s.tasks[i]
		if task.Opcode != Read && task.Opcode != Write {
			return status.Errorf(status.InvalidArgument, "request %d has opcode %d", i, task.Opcode)
		}
		task.Next, task.outstanding = -1, task.Length
		s.bytes += task.Length
		way := route{target: task.Target}
		var mixed error
		way.device, mixed = e.memory.pinOverlapping(Range{Addr: task.Local, Length: task.Length}, &s.pins)
		if way.device != nil {
			way.opcode = task.Opcode
		}
		if last == nil || lastRoute != way {
			if last != nil && byRoute == nil {
				byRoute = map[route]*Work{lastRoute: last}
			}
			if last = byRoute[way]; last == nil {
				segment, err := e.target(task.Target, haveTransport)
				if err != nil {
					return err
				}
				last = s.newWork(segment, way.device)
				if byRoute != nil {
					byRoute[way] = last
				}
			}
			lastRoute = way
		}
		switch {
		case task.Length == 0:
			s.empty = true
		case task.wraps() || last.Bytes+task.Length < last.Bytes:
			s.refused = append(s.refused, refusal{int32(i), errWraps})
		case mixed != nil:
			s.refused = append(s.refused, refusal{int32(i), mixed})
		default:
			last.append(int32(i))
		}
	}
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

func (w *Work) append(i int32) {
	if w.Head < 0 {
		w.Head = i
	} else {
		w.Tasks[w.tail].Next = i
	}
	w.tail = i
	w.Bytes += w.Tasks[i].Length
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
