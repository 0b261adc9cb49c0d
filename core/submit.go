package core

import (
	"kvferry/core/metadata"
	"kvferry/core/status"
)

// From requests to the work of a transport:
//
//  1. Submit and SubmitArrays write the requests into the tasks of a new submission.
//  2. Each task is checked, its local memory is pinned, and it is linked into the work for its segment (distribute.go).
//  3. The batch takes over the submission. From here on its tasks end one by one; before, an error undoes all of it.
//  4. Each work goes to its transport: a copy within the process, the staging of a device, or the network.

// Submit adds the requests to the batch and starts them; on an error nothing was added. reqs is not kept. The memory that it
// names is in use until the tasks have ended. notify may be nil. Otherwise it is sent to the owner of the first request's
// segment when all tasks of the batch have completed.
func (e *Engine) Submit(b *Batch, reqs []Request, notify *metadata.Notification) error {
	return e.submit(b, len(reqs), notify, func(d *distribution) error {
		for i := range d.tasks {
			d.tasks[i].Request = reqs[i]
		}
		return d.eachTask(0, len(d.tasks))
	})
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

// submit is Submit for so many requests. fill writes them into the tasks, and distributes these.
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
	var message *pendingNotification
	if err == nil && notify != nil {
		message = &pendingNotification{to: s.tasks[0].Target, msg: *notify}
		err = e.checkNotification(message)
	}
	if err == nil {
		err = b.add(s, message)
	}
	if err != nil {
		unpinAll(s.pins.regions)
		return err
	}
	if e.ctx.Err() != nil { // Close may not have seen these tasks in the batch
		s.abort(ErrClosed)
	}
	for i, w := range s.works {
		switch {
		case w.Head < 0: // it has no tasks
		case w.Segment == e.local.segment:
			e.local.Submit(w)
		case w.device != nil:
			e.stager.submit(w, transports[len(transports)-1])
		default:
			transports[len(transports)-1].Submit(s.works[i : i+1]...)
		}
	}
	b.endUnmoved(s)
	return nil
}

// target finds the segment of a request. With MC_DISABLE_METACACHE it fetches the segment's descriptor again.
func (e *Engine) target(id SegmentID, haveTransport bool) (*Segment, error) {
	segment, err := e.openTarget(id, haveTransport)
	if err == nil && segment != e.local.segment && e.config.DisableMetaCache {
		e.refresh(segment)
	}
	return segment, err
}

// openTarget finds the segment of a request, without a request to its owner or a store.
func (e *Engine) openTarget(id SegmentID, haveTransport bool) (*Segment, error) {
	if id == LocalSegment {
		return e.local.segment, nil
	}
	if !haveTransport {
		return nil, status.Errorf(status.NotSupportedTransport, "no transport is installed")
	}
	return e.segment(id)
}

// Expect is for a caller that is about to submit a batch on one segment, and to call Assist for it. The caller calls the returned
// function when Assist has returned, or when nothing was submitted.
func (e *Engine) Expect(id SegmentID) (end func()) {
	all := e.installed()
	if s := e.segments.numbered(id); s != nil && len(all) > 0 {
		return all[len(all)-1].Expect(s)
	}
	return func() {}
}

// AssistLatest is Assist for the segment of the first request that was submitted last.
func (e *Engine) AssistLatest(b *Batch) {
	if s := b.latest.Load(); s != nil {
		e.Assist(b, s.tasks[0].Target)
	}
}

// Assist is for a caller that is about to wait for a batch on one segment. If the batch is short, the calling thread helps to
// finish it, for a fraction of a millisecond, or some milliseconds while other programs want the processors, too: that is faster
// than to sleep and be woken by a thread that was woken itself. The batch may be unfinished when it returns.
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
