package core

import (
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/metadata"
)

// A work is bound to one incarnation of the segment's owner:
//
//  1. Submit binds a work to the identity in the segment's descriptor, if a connection to the owner is up.
//  2. Otherwise the transport binds it, when a connection has proven the owner's identity and for how long the owner has been
//     running. If the owner was started before the work was submitted, the work is bound to it. If the owner was started later,
//     the work is bound to the identity in the descriptor of that time, for which it was meant. The same holds if an attempt to
//     reach the owner has failed since then, and if the owner has no identity: when a Mooncake engine was started is not known.
//  3. A work that is bound goes to the engine with that identity, or fails. All parts of a work share one binding.
//
// The identity of an owner that has none is "".

// verifiedFor is how long after it was fetched a descriptor counts as verified, where no connection proves it.
const verifiedFor = 5 * time.Second

// binding is the identity that a work is bound to; nil before that.
type binding struct {
	identity atomic.Pointer[string]
	known    *string       // the identity in the descriptor when the work was submitted; nil if the work was bound then
	since    time.Duration // when it was submitted, by clock.AtMostSinceBoot: too early a time only binds the work more strictly

	ways atomic.Uint32 // see Work.Went
}

// begin binds a work that is being submitted, if a connection proves the segment's descriptor. Batch.add sets since.
func (b *binding) begin(s *Segment) {
	connected := s.proof.connections.Load() > 0 // read before the descriptor, which is then not older than the connection
	d := s.Descriptor()
	switch {
	case d == nil:
	case connected:
		b.bind(&d.Identity)
	default:
		b.known = &d.Identity
	}
}

// bind binds to an identity, unless it is bound, and reports whether it is bound to that identity.
func (b *binding) bind(identity *string) bool {
	bound := b.identity.Load()
	if bound == nil {
		if b.identity.CompareAndSwap(nil, identity) {
			return true
		}
		bound = b.identity.Load()
	}
	return bound == identity || *bound == *identity
}

// binding is what all parts of the work share.
func (w *Work) binding() *binding {
	if w.shared != nil {
		return w.shared
	}
	return &w.own
}

// Bind reports whether the work may go to the engine that a descriptor describes. there is when that engine was started, by
// clock.SinceBoot. A work that is not bound yet is bound. It takes a few nanoseconds.
func (w *Work) Bind(d *metadata.Descriptor, there time.Duration) bool {
	b := w.binding()
	if b.known != nil && (d.Identity == "" || there > b.since || w.Segment.proof.failed.Load() >= int64(b.since)) {
		b.bind(b.known)
	}
	return b.bind(&d.Identity)
}

// BoundTo is the identity that the work is bound to, or "".
func (w *Work) BoundTo() string {
	if identity := w.binding().identity.Load(); identity != nil {
		return *identity
	}
	return ""
}

// proof says whether the descriptor of a segment is known to be that of a running owner.
type proof struct {
	connections atomic.Int64 // connections to the owner that are up
	failed      atomic.Int64 // when an attempt to reach the owner failed last, by clock.AtMostSinceBoot
	seen        atomic.Int64 // when the owner was last known to run, by clock.Now; 0 while the descriptor is unverified
}

// Connected is called by a transport when a connection to the segment's owner is up. Disconnected undoes it.
func (s *Segment) Connected() {
	s.proof.connections.Add(1)
	s.confirm()
}

// Disconnected is called when a connection to the segment's owner is down.
func (s *Segment) Disconnected() { s.proof.connections.Add(-1) }

// MarkUnverified is called by a transport that has seen a sign that the owner has ended, for example a lost connection: the
// descriptor is unverified until it is fetched again, or a connection is up.
func (s *Segment) MarkUnverified() { s.proof.seen.Store(0) }

// NoteUnreachable notes that an attempt to reach the owner has failed.
func (s *Segment) NoteUnreachable() { s.proof.failed.Store(int64(clock.AtMostSinceBoot())) }

// confirm notes that the owner is running.
func (s *Segment) confirm() { s.proof.seen.Store(int64(clock.Now())) }

// Verified reports whether the cached descriptor is known to be that of a running owner: a connection is up, or the descriptor
// was fetched within the last seconds and MarkUnverified was not called since.
func (s *Segment) Verified() bool {
	if s.proof.connections.Load() > 0 {
		return true
	}
	seen := s.proof.seen.Load()
	return seen > 0 && int64(clock.Now())-seen < int64(verifiedFor)
}
