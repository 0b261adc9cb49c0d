package core

import (
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/metadata"
)

// Which incarnation of a segment's owner a work is for:
//
//  1. Submit binds a work to the identity in the segment's descriptor, if a connection to the owner is up.
//  2. A work that is not bound then is bound by the transport, when a connection has proven who the owner is, and how long
//     it has been there. An owner that came after the work was submitted gets it only if it is the one that the segment
//     showed then: the work was meant for that one. It was, too, if that one has not answered an attempt since. Of an
//     owner without an identity, Mooncake's, nobody knows since when it has been there.
//  3. A work that is bound goes to the engine of that identity, or fails. All parts of a work share one binding.
//
// The identity of an owner without one is "".

// verifiedFor is how long a descriptor counts as that of a living owner while no connection proves it: for calls by name,
// and for Mooncake's, which prove nothing.
const verifiedFor = 5 * time.Second

// binding is the identity that a work is bound to; nil before that.
type binding struct {
	identity atomic.Pointer[string]
	known    *string       // what the segment showed when the work was submitted and was not bound; nil otherwise
	since    time.Duration // when that was, by clock.SinceBoot
}

// begin binds a work that is being submitted, if a connection proves the segment's descriptor.
func (b *binding) begin(s *Segment) {
	connected := s.proof.connections.Load() > 0 // before the descriptor: that is never older than the connection
	d := s.Descriptor()
	switch {
	case d == nil:
	case connected:
		b.bind(&d.Identity)
	default:
		b.known, b.since = &d.Identity, clock.SinceBoot()
	}
}

// bind binds to an identity, and reports whether the binding is to that one.
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

// Bind reports whether the work may go to the engine that a descriptor describes, which has been there since a time of clock.SinceBoot,
// and binds it to that engine where it is not bound yet. It takes a few nanoseconds.
func (w *Work) Bind(d *metadata.Descriptor, there time.Duration) bool {
	b := w.shared
	if b == nil {
		b = &w.own
	}
	if b.known != nil && (d.Identity == "" || there > b.since || w.Segment.proof.failed.Load() >= int64(b.since)) {
		b.bind(b.known)
	}
	return b.bind(&d.Identity)
}

// BoundTo is the identity that the work is bound to, or "".
func (w *Work) BoundTo() string {
	b := w.shared
	if b == nil {
		b = &w.own
	}
	if identity := b.identity.Load(); identity != nil {
		return *identity
	}
	return ""
}

// proof says how far the descriptor of a segment is known to be that of an owner that lives.
type proof struct {
	connections atomic.Int64 // that are up to the owner
	failed      atomic.Int64 // when an attempt to reach the owner failed last, by clock.SinceBoot
	seen        atomic.Int64 // when the owner was last known to live, by clock.Now; 0 while the descriptor is unverified
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
func (s *Segment) NoteUnreachable() { s.proof.failed.Store(int64(clock.SinceBoot())) }

// confirm notes that the owner lives.
func (s *Segment) confirm() { s.proof.seen.Store(int64(clock.Now())) }

// Verified reports whether the cached descriptor is known to be that of a living owner: a connection is up, or the
// descriptor was fetched within the last seconds and nothing has spoken against it since.
func (s *Segment) Verified() bool {
	if s.proof.connections.Load() > 0 {
		return true
	}
	seen := s.proof.seen.Load()
	return seen > 0 && int64(clock.Now())-seen < int64(verifiedFor)
}
