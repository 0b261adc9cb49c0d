// Package transporttest has a transport that moves no bytes: the test settles them.
package transporttest

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core"
	"kvferry/core/metrics"
	"kvferry/core/status"
)

// Transport is a core.Transport that holds every work until the test settles it. By itself it settles only work that the contract of
// core.Transport makes it give up: aborted work in Abort and in Submit, all work in Close, and work that it gets after Close. Its
// fields are set before it is installed. Its methods may be called from any goroutine.
type Transport struct {
	// Address is what Endpoint returns.
	Address core.Endpoint

	// KeepAborted makes it hold aborted work, too, as if its bytes were still moving.
	KeepAborted bool

	// OnSubmit, OnAbort, OnEvict, OnForget and OnClose are called first in the method of that name. They may settle works.
	OnSubmit func(*Held)
	OnAbort  func()
	OnEvict  func(*core.Region)
	OnForget func(*core.Segment)
	OnClose  func()

	// Stuck makes Close fail with core.ErrInUse until the channel is closed, and settle nothing; nil for a transport that can be
	// closed.
	Stuck chan struct{}

	// OnLinks is what Links returns; nil for none.
	OnLinks func() []core.Link

	// OnHolders is what Holders returns; nil for none.
	OnHolders func(*core.Region) []string

	// OnEvictOffer is what EvictOffer calls; nil for nothing.
	OnEvictOffer func(*core.Offer)

	// Transfers is what TakesTransfers returns.
	Transfers bool

	// Traffic is what Moved returns.
	Traffic atomic.Uint64

	mu     sync.Mutex
	held   []*Held
	calls  Calls
	closed bool
}

// Calls counts the calls of a transport.
type Calls struct {
	Open, Submit, Abort, Evict, Forget, Close int
}

var _ core.Transport = (*Transport)(nil)

// Open is a factory for core.Engine.Install: it returns the transport itself.
func (t *Transport) Open(*core.Engine) (core.Transport, error) {
	t.count(func(c *Calls) { c.Open++ })
	return t, nil
}

// Calls is the count so far.
func (t *Transport) Calls() Calls {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.calls
}

// Held are the works that have unsettled bytes, in the order of their arrival.
func (t *Transport) Held() []*Held {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held = slices.DeleteFunc(t.held, func(h *Held) bool { return h.Left() == 0 })
	return slices.Clone(t.held)
}

// SettleAll settles all works that are held.
func (t *Transport) SettleAll(err error) {
	for _, h := range t.Held() {
		h.SettleRest(err)
	}
}

// Endpoint implements core.Transport.
func (t *Transport) Endpoint() core.Endpoint { return t.Address }

// Submit implements core.Transport.
func (t *Transport) Submit(works ...*core.Work) {
	t.count(func(c *Calls) { c.Submit++ })
	for _, w := range works {
		t.submit(&Held{Work: w, open: []span{{0, w.Bytes}}})
	}
}

func (t *Transport) submit(h *Held) {
	if t.OnSubmit != nil {
		t.OnSubmit(h)
	}
	if err := t.hold(h); err != nil {
		h.SettleRest(err)
	}
	t.giveUp(h)
}

// hold adds a work to those that are held, or says why it cannot.
func (t *Transport) hold(h *Held) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return closedError()
	}
	if err := h.Segment.Removed(); err != nil {
		return err
	}
	t.held = append(t.held, h)
	return nil
}

// Abort implements core.Transport.
func (t *Transport) Abort() {
	t.count(func(c *Calls) { c.Abort++ })
	if t.OnAbort != nil {
		t.OnAbort()
	}
	for _, h := range t.Held() {
		t.giveUp(h)
	}
}

func (t *Transport) giveUp(h *Held) {
	if cause := h.Aborted(); cause != nil && !t.KeepAborted {
		h.SettleRest(cause)
	}
}

// Expect implements core.Transport; it does nothing.
func (t *Transport) Expect(*core.Segment) (end func()) { return func() {} }

// Assist implements core.Transport; it does nothing.
func (t *Transport) Assist(*core.Segment, func() bool) {}

// Evict implements core.Transport.
func (t *Transport) Evict(r *core.Region) {
	t.count(func(c *Calls) { c.Evict++ })
	if t.OnEvict != nil {
		t.OnEvict(r)
	}
}

// Holders implements core.Transport.
func (t *Transport) Holders(r *core.Region) []string {
	if t.OnHolders == nil {
		return nil
	}
	return t.OnHolders(r)
}

// EvictOffer implements core.Transport.
func (t *Transport) EvictOffer(o *core.Offer) {
	if t.OnEvictOffer != nil {
		t.OnEvictOffer(o)
	}
}

// TakesTransfers implements core.Transport.
func (t *Transport) TakesTransfers() bool { return t.Transfers }

// Moved implements core.Transport.
func (t *Transport) Moved(*core.Segment) uint64 { return t.Traffic.Load() }

// Forget implements core.Transport: what is held for the segment fails.
func (t *Transport) Forget(s *core.Segment) {
	t.count(func(c *Calls) { c.Forget++ })
	if t.OnForget != nil {
		t.OnForget(s)
	}
	for _, h := range t.Held() {
		if h.Segment == s {
			h.SettleRest(s.Removed())
		}
	}
}

// Stats implements core.Transport; it says nothing.
func (t *Transport) Stats() (s metrics.Transport) { return s }

// Links implements core.Transport.
func (t *Transport) Links() []core.Link {
	if t.OnLinks == nil {
		return nil
	}
	return t.OnLinks()
}

// Close implements core.Transport.
func (t *Transport) Close() error {
	t.count(func(c *Calls) { c.Close++ })
	if t.OnClose != nil {
		t.OnClose()
	}
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	if t.Stuck != nil {
		select {
		case <-t.Stuck:
		case <-time.After(time.Millisecond):
			return status.Errorf(status.BatchBusy, "the fake transport is %w", core.ErrInUse)
		}
	}
	t.SettleAll(closedError())
	return nil
}

func (t *Transport) count(add func(*Calls)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	add(&t.calls)
}

func closedError() error { return status.Errorf(status.Context, "%w", core.ErrClosed) }

// Held is a work that a Transport has been given. Its bytes are counted from 0 over the tasks of the work, in the
// order in which they are linked.
type Held struct {
	*core.Work

	mu   sync.Mutex
	open []span // unsettled bytes, in no order; no span is empty
}

// span is a range of bytes, without the byte at to.
type span struct{ from, to uint64 }

// Left is the number of bytes not settled.
func (h *Held) Left() (bytes uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.open {
		bytes += s.to - s.from
	}
	return bytes
}

// Settle settles length bytes from from on. It panics if one of them is settled already: a transport must not do this.
func (h *Held) Settle(from, length uint64, err error) {
	h.take(span{from, from + length})
	h.settle(span{from, from + length}, err)
}

// SettleRest settles the bytes that are not settled yet.
func (h *Held) SettleRest(err error) {
	h.mu.Lock()
	rest := h.open
	h.open = nil
	h.mu.Unlock()
	for _, s := range rest {
		h.settle(s, err)
	}
}

// take removes a span from those that are open.
func (h *Held) take(s span) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, o := range h.open {
		if s.from >= o.from && s.to <= o.to && s.from < s.to {
			h.open = slices.Delete(h.open, i, i+1)
			for _, rest := range []span{{o.from, s.from}, {s.to, o.to}} {
				if rest.from < rest.to {
					h.open = append(h.open, rest)
				}
			}
			return
		}
	}
	panic(fmt.Sprintf("transporttest: bytes %d to %d of a work of %d are empty, settled already or outside it",
		s.from, s.to, h.Bytes))
}

// settle finds the task in which a span begins, and ends it.
func (h *Held) settle(s span, err error) {
	task, skip := h.Head, s.from
	for skip >= h.Tasks[task].Length {
		skip -= h.Tasks[task].Length
		task = h.Tasks[task].Next
	}
	h.Work.Settle(task, skip, s.to-s.from, err)
}
