package tcp

import (
	"errors"
	"slices"
	"unsafe"

	"kvferry/core"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// Requests by address, which only peers on the same host send (tcp/samehost):
//
//  1. WRITE: fetchIn owes a status frame, and notes where the payload is and where it goes.
//  2. fetch gets what was noted, in one system call: at the end of a turn, before anything is answered, and before other
//     bytes are moved that might meet it.
//  3. Where that fails each request is tried by itself. One whose payload cannot be had is answered statusOutOfReach:
//     the peer sends it again, with the payload.
//  4. READ: grant answers with the region that the range is in.

// fetches is the payloads of a turn that are to be fetched from the peer's process.
type fetches struct {
	*samehost.Copies
	single   *samehost.Copies // for each by itself
	statuses []int            // for each its status frame, by the position in the turn's
	targets  hull             // of where they go
}

// meets reports whether one of them goes where a request's payload goes, too.
func (f *fetches) meets(h wire.Header) bool {
	return f.targets.meets(h) && slices.ContainsFunc(f.To, func(v sockio.Vector) bool {
		return uint64(v.Base) < h.Addr+h.Length && h.Addr < uint64(v.Base)+v.Length
	})
}

// neighbourly serves a request by address.
func (s *session) neighbourly(h wire.Header, region *core.Region) error {
	switch {
	case region.Device != nil, s.process == nil, h.Op == wire.Write && s.permit == nil:
		s.outOfReach(h)
		return nil
	case h.Op == wire.Read:
		s.grant(h)
		return nil
	}
	return s.fetchIn(h)
}

// outOfReach has the peer send the request again in the other form.
func (s *session) outOfReach(h wire.Header) {
	s.turn.oweStatus(wire.StatusOutOfReach)
	if h.Op == wire.Read {
		s.turn.oweGrant(wire.Grant{})
	}
}

// grant owes the answer to a READ by address. The region is looked up once more after the epoch was read: if it is still
// there, the epoch has yet to change when it is taken back. Nothing is granted once the engine is being closed: the epoch
// is 0 from then on.
func (s *session) grant(h wire.Header) {
	epoch := s.target.memory.Epoch()
	now := epoch.Load()
	region, err := s.target.memory.PinRemote(h.Addr, h.Length)
	if err == nil && now == 0 {
		region.Unpin()
		err = errTargetClosed
	}
	if err != nil {
		s.outOfReach(h)
		return
	}
	region.Unpin()
	s.turn.oweStatus(wire.StatusOK)
	s.turn.oweGrant(wire.Grant{
		Addr: uint64(region.Addr), Length: region.Length, EpochAt: uint64(uintptr(unsafe.Pointer(epoch))), Epoch: now,
	})
}

// fetchIn takes a WRITE by address into the turn.
func (s *session) fetchIn(h wire.Header) error {
	if s.reads.meets(h) {
		if err := s.catchUp(); err != nil { // the READ came first, and gets what was there before
			return err
		}
	}
	if s.fetches == nil {
		s.fetches = &fetches{Copies: samehost.NewCopies(copies), single: samehost.NewCopies(copies)}
	}
	f := s.fetches
	if f.meets(h) { // the order of two copies in one system call is not promised
		if err := s.fetch(); err != nil {
			return err
		}
	}
	f.targets.add(h)
	f.statuses = append(f.statuses, s.turn.statusesEnd)
	f.Add(uintptr(h.Addr), uintptr(h.Source), h.Length)
	s.turn.oweStatus(wire.StatusOK)
	if f.Full() {
		return s.fetch()
	}
	return nil
}

// fetch gets every payload that was noted, and says in its status frame what became of it. An error is for a peer that has
// revoked its permit or has ended: the session ends.
func (s *session) fetch() error {
	f := s.fetches
	if f == nil || len(f.statuses) == 0 {
		return nil
	}
	err := f.Run(s.process, s.permit, s.permit.Proof())
	switch {
	case err == nil:
		s.bytesIn.Add(f.Bytes)
	case errors.Is(err, samehost.ErrOutOfReach):
		err = s.fetchEach(f)
	default:
		for _, at := range f.statuses {
			wire.PutStatus(s.turn.statuses[at:], wire.StatusOutOfReach)
		}
	}
	s.progress.Add(1)
	f.Reset()
	f.statuses, f.targets = f.statuses[:0], hull{}
	return err
}

// fetchEach gets the payloads one by one.
func (s *session) fetchEach(f *fetches) (ended error) {
	for i, at := range f.statuses {
		one := f.single
		one.Reset()
		one.Add(f.To[i].Base, f.From[i].Base, f.To[i].Length)
		switch err := one.Run(s.process, s.permit, s.permit.Proof()); {
		case err == nil:
			s.bytesIn.Add(one.Bytes)
		case errors.Is(err, samehost.ErrOutOfReach):
			wire.PutStatus(s.turn.statuses[at:], wire.StatusOutOfReach)
		default:
			wire.PutStatus(s.turn.statuses[at:], wire.StatusOutOfReach)
			ended = err
		}
	}
	return ended
}
