package core

import (
	"context"
	"crypto/rand"
	"errors"
	"sort"
	"sync"
	"time"

	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// An offer lets whoever knows its key read or write the memory of some blocks, for as long as the offer lives:
//
//  1. Engine.Offer finds out which memory that is, and makes a random key. The text of the offer goes to the peer through a side
//     channel.
//  2. Each request of a peer that has the key is served by Registry.UseOffer: only within that memory, in the direction that is
//     offered, and while the offer lives. The regions need not be open to peers.
//  3. Revoke refuses further requests, and waits for those that are being served. A request that waits for its peer, and touches
//     no memory meanwhile, ends its use for as long (Resume). Others of slow peers are ended. Then Revoke waits for what holds the
//     memory, as a copy of a device that was given up (Registry.Hold). The engine does the same when the time of the offer is over.
//  4. An offer ends when a region is unregistered that has some of its memory (endWithin). Its requests end with the region's.

// The reasons why a request with a key is refused.
var (
	ErrRevoked    = errors.New("the offer was revoked, or its time is over")
	ErrNotOffered = errors.New("the offer does not cover the request")
	ErrOfferUsed  = errors.New("the offer was for one transfer, and another one has used it")
)

const (
	// maxOffers bounds the offers of an engine that live at a time.
	maxOffers = 1 << 16
	// offerGrace is how long Revoke waits for requests that are being served before it ends them. A live peer needs about a
	// millisecond.
	offerGrace = 50 * time.Millisecond
)

// OfferOptions are what an offer allows.
type OfferOptions struct {
	Access Access        // what peers may do: RemoteRead, RemoteWrite, or both
	Once   bool          // for one transfer only, whose requests may be sent again after a loss
	For    time.Duration // how long the offer lives; 0 for until it is revoked
}

// Offer is memory that peers may read or write by a key. Its methods may be called from any goroutine.
type Offer struct {
	engine *Engine
	key    layout.Key
	o      OfferOptions
	text   []byte
	ranges []layout.Range // by address, none adjacent to the next
	until  time.Time      // zero for no end

	mu      sync.Mutex
	timer   *time.Timer // revokes it when its time is over; nil for no end
	revoked bool
	taken   bool          // a transfer has used it
	by      uint64        // the id of the first one
	uses    int           // requests that are being served
	idle    chan struct{} // closed when it is revoked and has no uses
}

// offers are those of an engine that live.
type offers struct {
	mu    sync.RWMutex
	byKey map[layout.Key]*Offer
}

// Offer offers the memory of a place from its first token on. The place's layout is this process's. Each token of it is in its
// table once. Its regions may be registered with any access. The offer ends when one of them is unregistered.
func (e *Engine) Offer(p layout.Place, o OfferOptions) (*Offer, error) {
	if e.ctx.Err() != nil {
		return nil, closedError()
	}
	if err := o.Access.check(); err != nil {
		return nil, err
	}
	if o.Access == NoAccess || o.For < 0 {
		return nil, status.Errorf(status.InvalidArgument, "an offer lets peers read, write, or both, for some time")
	}
	if p.Key != (layout.Key{}) { // its addresses are another process's, perhaps of a stranger's choice
		return nil, status.Errorf(status.InvalidArgument, "what is offered is itself an offer of another process")
	}
	ranges, err := p.Ranges()
	if err != nil {
		return nil, status.Errorf(status.InvalidArgument, "what is offered: %w", err)
	}
	offer := &Offer{engine: e, o: o, ranges: ranges, idle: make(chan struct{})}
	_, _ = rand.Read(offer.key[:]) // never fails: see crypto/rand
	offered := layout.Offered{Place: p, Engine: e.Name(), Read: o.Access.Allows(Read), Write: o.Access.Allows(Write)}
	offered.Key = offer.key
	if offer.text = offered.JSON(); len(offer.text) > layout.MaxOfferText {
		return nil, status.Errorf(status.InvalidArgument, "the text of the offer has %d bytes, where %d are the most: offer fewer blocks",
			len(offer.text), layout.MaxOfferText)
	}
	if o.For > 0 {
		offer.until = time.Now().Add(o.For)
	}
	if err := e.memory.offers.add(offer); err != nil {
		return nil, err
	}
	offer.revokeLater()
	return offer, nil
}

func (s *offers) add(o *Offer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byKey) >= maxOffers {
		return status.Errorf(status.TooManyRequests, "the engine has %d offers that were not revoked", len(s.byKey))
	}
	if s.byKey == nil {
		s.byKey = map[layout.Key]*Offer{}
	}
	s.byKey[o.key] = o
	return nil
}

func (s *offers) remove(o *Offer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byKey, o.key)
}

// endWithin ends the offers that have memory of a range.
func (s *offers) endWithin(r Range) { s.endThose(func(o *Offer) bool { return o.overlaps(r) }) }

// close ends all offers, so that no timer keeps their engine.
func (s *offers) close() { s.endThose(func(*Offer) bool { return true }) }

func (s *offers) endThose(which func(*Offer) bool) {
	s.mu.RLock()
	var ended []*Offer
	for _, o := range s.byKey {
		if which(o) {
			ended = append(ended, o)
		}
	}
	s.mu.RUnlock()
	for _, o := range ended {
		o.end()
	}
}

// Text is the offer as JSON, for a side channel that keeps it secret. The caller does not change it.
func (o *Offer) Text() []byte { return o.text }

// UseOffer begins to use the offer with a key, for a request of a transfer. The caller calls Offer.End when the request is served.
// The error has ErrRevoked, ErrNotOffered or ErrOfferUsed in it.
func (m *Registry) UseOffer(key layout.Key, id uint64, op Opcode, memory *hostmem.Strided) (*Offer, error) {
	m.offers.mu.RLock()
	o := m.offers.byKey[key]
	m.offers.mu.RUnlock()
	if o == nil {
		return nil, status.Errorf(status.AddressNotRegistered, "%w", ErrRevoked)
	}
	if err := o.begin(id, op, memory); err != nil {
		return nil, err
	}
	return o, nil
}

// begin counts a use, or says why there is none.
func (o *Offer) begin(id uint64, op Opcode, memory *hostmem.Strided) error {
	if !o.o.Access.Allows(op) {
		return status.Errorf(status.AddressNotRegistered, "%w: it does not let peers %s", ErrNotOffered, op.Verb())
	}
	sorted := memory.ByStride()
	if !sorted.Within(o.covers) {
		addr, length := memory.Bounds()
		return status.Errorf(status.AddressNotRegistered, "%w: some of %v is not offered", ErrNotOffered, Range{Addr: addr, Length: length})
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.isOver():
		return status.Errorf(status.AddressNotRegistered, "%w", ErrRevoked)
	case o.o.Once && o.taken && o.by != id:
		return status.Errorf(status.AddressNotRegistered, "%w", ErrOfferUsed)
	}
	o.taken, o.by = true, id
	o.uses++
	return nil
}

// isOver reports whether the offer was revoked, or its time is over. The lock is held.
func (o *Offer) isOver() bool {
	return o.revoked || !o.until.IsZero() && time.Now().After(o.until)
}

// Resume begins a use again that was ended while its request waited for the peer. The error has ErrRevoked in it: nothing of the
// memory may be touched by the request any more.
func (o *Offer) Resume() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.isOver() {
		return status.Errorf(status.AddressNotRegistered, "%w", ErrRevoked)
	}
	o.uses++
	return nil
}

// covers reports whether a range lies in what is offered.
func (o *Offer) covers(addr uintptr, length uint64) bool {
	after := sort.Search(len(o.ranges), func(i int) bool { return o.ranges[i].Address > uint64(addr) })
	if after == 0 {
		return false
	}
	r := o.ranges[after-1]
	return (Range{Addr: uintptr(r.Address), Length: r.Bytes}).Holds(uint64(addr), length)
}

// End ends a use.
func (o *Offer) End() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.uses--; o.uses == 0 && o.revoked {
		close(o.idle)
	}
}

// overlaps reports whether some of a range is offered.
func (o *Offer) overlaps(r Range) bool {
	after := sort.Search(len(o.ranges), func(i int) bool { return o.ranges[i].Address+o.ranges[i].Bytes > uint64(r.Addr) })
	return after < len(o.ranges) && o.ranges[after].Address < uint64(r.end())
}

// revokeLater has the offer revoked when its time is over.
func (o *Offer) revokeLater() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.revoked || o.until.IsZero() || o.engine.ctx.Err() != nil {
		return
	}
	o.timer = time.AfterFunc(time.Until(o.until), func() {
		if !o.engine.enter() {
			return
		}
		defer o.engine.running.Done()
		if err := o.Revoke(); err != nil {
			o.engine.log.Warn("the time of an offer is over, but its memory is in use", zap.Error(err))
		}
	})
}

// end has requests refused from now on.
func (o *Offer) end() {
	o.engine.memory.offers.remove(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.revoked {
		return
	}
	o.revoked = true
	if o.timer != nil {
		o.timer.Stop()
	}
	if o.uses == 0 {
		close(o.idle)
	}
}

// Revoke ends the offer: requests that have its key are refused from then on, and when Revoke returns nil no byte for it moves any
// more. Requests that are being served have a moment to end; then their connections are ended. One that a system call or a device
// holds up may still move bytes, and so may a copy that was given up and does not end, of any transfer: the error is a
// status.BatchBusy with ErrInUse in it, and another Revoke waits again. It may be called more than once.
func (o *Offer) Revoke() error {
	o.end()
	idle := o.waitIdle(offerGrace)
	if !idle {
		for _, t := range o.engine.installed() {
			t.EvictOffer(o)
		}
	}
	ctx, done := context.WithTimeout(context.Background(), o.engine.ending)
	defer done()
	const what = "the offer was revoked, but its memory"
	if !idle && !o.waitIdleIn(ctx) {
		o.mu.Lock()
		defer o.mu.Unlock()
		return status.Errorf(status.BatchBusy, "%s is %w by %d requests of peers", what, ErrInUse, o.uses)
	}
	return o.engine.memory.waitReleased(ctx, what, o.overlaps)
}

// waitIdle reports whether no request uses the revoked offer within the limit.
func (o *Offer) waitIdle(limit time.Duration) bool {
	ctx, done := context.WithTimeout(context.Background(), limit)
	defer done()
	return o.waitIdleIn(ctx)
}

// waitIdleIn is waitIdle until the context ends.
func (o *Offer) waitIdleIn(ctx context.Context) bool {
	select {
	case <-o.idle:
		return true
	default:
	}
	select {
	case <-o.idle:
		return true
	case <-ctx.Done():
		return false
	}
}

// PinOffered finds the region that holds [addr, addr+length), and pins it for a request that an offer allows, whatever else
// peers may do with the region. The caller calls Unpin.
func (m *Registry) PinOffered(addr, length uint64) (*Region, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	region := atOrBelow(m.index, uintptr(addr))
	if region == nil || !region.Holds(addr, length) {
		return nil, status.Errorf(status.AddressNotRegistered, "address range %v is offered, but is not within a registered region",
			Range{Addr: uintptr(addr), Length: length})
	}
	region.pins.Add(1)
	return region, nil
}
