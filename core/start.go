package core

import (
	"context"
	"iter"
	"slices"
	"time"

	"kvferry/core/device"
	"kvferry/core/layout"
	"kvferry/core/metadata"
)

// A transfer that one call starts (Start), whatever it waits for:
//
//  1. Requests for a segment that is open are submitted at once.
//  2. Otherwise the batch is fed: a goroutine of the engine opens the segment, waits until the stream has come to the transfer,
//     and submits the requests.
//  3. A stream that orders the transfer calls back when it has come to it. The callback lets the feeder go on, and returns when
//     the batch has ended. Until then the stream waits.
//  4. A message without requests is sent by the feeder. The batch fails if the segment's owner does not accept it.

// Transfer is what Start starts.
type Transfer struct {
	Segment string // its name
	Opcode  Opcode
	Arrays  Arrays           // the requests; their opcode and target are set by Start
	Plan    *layout.Transfer // or the requests of a transfer of a plan
	Notify  *metadata.Notification
	Limit   time.Duration // from now, or from the stream's turn; 0 is none without a stream, and the engine's with one
	Stream  *Stream       // nil for none
	Parent  string        // the span of the program that the transfer belongs to, as a traceparent of W3C; "" for none
}

// Stream is a stream of the application.
type Stream struct {
	Runtime string  // whose it is, "cuda"
	Handle  uintptr // of the runtime's library; 0 for its default stream
}

// Start makes a batch and starts a transfer in it. A segment that is not open is opened in the background; where that fails, so
// does the batch. Without requests and without a message, the batch ends when the segment is open. The slices of t.Arrays are not
// kept. On an error there is no batch.
func (e *Engine) Start(t *Transfer) (*Batch, error) {
	if e.ctx.Err() != nil {
		return nil, closedError()
	}
	if err := t.Opcode.check(); err != nil {
		return nil, err
	}
	if t.Plan != nil && t.Plan.Runs > maxPlanned {
		return nil, tooManyRuns(t.Plan)
	}
	id, open, err := e.Opened(t.Segment)
	if err != nil {
		return nil, err
	}
	if open && t.Stream == nil && t.requests() > 0 {
		return e.startNow(t, id)
	}
	return e.startLater(t, id, open)
}

// requests is how many requests the transfer has.
func (t *Transfer) requests() int {
	if t.Plan != nil {
		return int(t.Plan.Runs)
	}
	return len(t.Arrays.Local)
}

// startNow submits the requests.
func (e *Engine) startNow(t *Transfer, id SegmentID) (b *Batch, err error) {
	if t.Plan != nil {
		b, err = e.SubmitPlanned(t.planned(id), 0)
	} else if b, err = e.AllocateBatch(t.requests()); err == nil {
		b.parent = t.Parent
		if err = e.SubmitArrays(b, t.arrays(id), t.Notify); err != nil {
			err = inOrder(err, e.FreeBatch(b))
		}
	}
	if err != nil {
		return nil, err
	}
	if t.Limit > 0 {
		b.Limit(t.Limit)
	}
	return b, nil
}

func (t *Transfer) planned(id SegmentID) Planned {
	return Planned{Opcode: t.Opcode, Target: id, Transfer: t.Plan, Notify: t.Notify, Parent: t.Parent}
}

func (t *Transfer) arrays(id SegmentID) *Arrays {
	a := t.Arrays
	a.Opcode, a.Target = t.Opcode, id
	return &a
}

// local are the ranges of this process that the transfer moves.
func (t *Transfer) local() iter.Seq[Range] {
	if t.Plan != nil {
		p := t.planned(-1)
		return p.local()
	}
	return t.Arrays.local()
}

// startLater has a goroutine of the engine do what has to wait.
func (e *Engine) startLater(t *Transfer, id SegmentID, open bool) (*Batch, error) {
	l := &later{Transfer: *t, engine: e, id: id, open: open}
	for _, list := range []*[]uint64{&l.Arrays.Local, &l.Arrays.Remote, &l.Arrays.Lengths} {
		*list = slices.Clone(*list)
	}
	if err := l.findStream(); err != nil {
		return nil, err
	}
	b, err := e.AllocateBatch(t.requests())
	if err != nil {
		return nil, err
	}
	b.parent = t.Parent
	if err := e.feedBatch(b, t.requests(), l.local(), func(f *feed) error { return l.run(b, f) }); err != nil {
		return nil, inOrder(err, e.FreeBatch(b))
	}
	switch {
	case l.library != nil:
		if err := l.library.Call(t.Stream.Handle, func() { l.takeTurn(b) }); err != nil {
			return nil, inOrder(err, e.DiscardBatch(b))
		}
	case t.Limit > 0:
		b.Limit(t.Limit)
	}
	return b, nil
}

// later is a transfer that has to wait for something.
type later struct {
	Transfer
	engine  *Engine
	id      SegmentID
	open    bool            // id is the segment's
	library device.Ordering // of the stream; nil without one
	turn    chan struct{}   // closed when the stream has come to the transfer
}

// findStream prepares for the order of a stream, if there is one.
func (l *later) findStream() (err error) {
	if l.Stream == nil {
		return nil
	}
	if l.library, err = l.engine.devices.ordering(l.Stream.Runtime); err != nil {
		return err
	}
	l.engine.devices.prepare(l.Stream.Runtime, l.open && l.id == LocalSegment)
	l.turn = make(chan struct{})
	if l.Limit == 0 {
		l.Limit = l.engine.config.TransferTimeout + time.Duration(l.bytes()>>30)*time.Second
	}
	return nil
}

// bytes is how many bytes the transfer moves.
func (t *Transfer) bytes() (sum uint64) {
	if t.Plan != nil {
		return uint64(t.Plan.Bytes)
	}
	for _, length := range t.Arrays.Lengths {
		sum += length
	}
	return sum
}

// run is the feeder.
func (l *later) run(b *Batch, f *feed) (err error) {
	if !l.open {
		if l.id, err = l.engine.openFor(f, l.Segment); err != nil {
			return err
		}
	}
	if l.turn != nil {
		select {
		case <-l.turn:
		case <-f.ctx.Done():
			return context.Cause(f.ctx)
		}
	}
	switch {
	case l.requests() == 0 && l.Notify != nil:
		defer f.await("%s has not accepted the message", l.Segment)()
		return l.engine.notify(f.ctx, l.id, *l.Notify)
	case l.Plan != nil:
		return l.engine.feedRuns(b, f, l.planned(l.id), l.Plan.Each(), mostPlanned)
	}
	return l.engine.SubmitArrays(b, l.arrays(l.id), l.Notify)
}

// takeTurn is called by the stream's library when the stream has come to the transfer. It returns when nothing touches the memory
// any more, or something is stuck.
func (l *later) takeTurn(b *Batch) {
	e := l.engine
	if !e.enter() {
		return // the engine is closed, and has given the batch up
	}
	defer e.running.Done()
	close(l.turn)
	if !b.wait(l.Limit) {
		b.giveUpLate(l.Limit)
		b.wait(b.endingTime())
	}
}
