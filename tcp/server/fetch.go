package server

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
//  1. WRITE: fetchIn owes a status frame, and adds the payload to the turn's list of copies.
//  2. fetch makes these copies in one system call: at the end of a turn, before anything is answered, and before other bytes
//     are moved that might overlap.
//  3. Where that fails, each copy is tried by itself. A request whose payload cannot be copied is answered StatusOutOfReach.
//     The peer sends it again with the payload.
//  4. READ: grant answers with the region that the range is in.

// fetchList is the payloads of a turn that are to be copied from the peer's process.
type fetchList struct {
	*samehost.Copies
	single   *samehost.Copies // for each by itself
	statuses []int            // for each its status frame, by the position in the turn's
	targets  span             // of where they go
}

// meets reports whether one of them goes to the range of a request.
func (f *fetchList) meets(h wire.Header) bool {
	return f.targets.meets(h) && slices.ContainsFunc(f.To, func(v sockio.Vector) bool {
		return uint64(v.Base) < h.Addr+h.Length && h.Addr < uint64(v.Base)+v.Length
	})
}

// serveByAddress serves a request by address.
func (s *session) serveByAddress(h wire.Header, region *core.Region) error {
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
	epoch := s.server.memory.Epoch()
	now := epoch.Load()
	region, err := s.server.memory.PinRemote(h.Addr, h.Length, core.Read)
	if err == nil && now == 0 {
		region.Unpin()
		err = errClosed
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
	if s.fetchList == nil {
		s.fetchList = &fetchList{Copies: samehost.NewCopies(s.server.options.Limiter), single: samehost.NewCopies(s.server.options.Limiter)}
	}
	f := s.fetchList
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
	f := s.fetchList
	if f == nil || len(f.statuses) == 0 {
		return nil
	}
	s.turn.copying = s.trace.Now()
	err := f.Run(s.process, s.permit, s.permit.Proof())
	s.turn.copied = s.trace.Now()
	switch {
	case err == nil:
		s.fetched.Add(f.Bytes)
		s.written.Add(uint64(len(f.statuses)))
	case errors.Is(err, samehost.ErrOutOfReach):
		err = s.fetchEach(f)
	default:
		for _, at := range f.statuses {
			wire.PutStatus(s.turn.statuses[at:], wire.StatusOutOfReach)
		}
	}
	s.progress.Add(1)
	f.Reset()
	f.statuses, f.targets = f.statuses[:0], span{}
	return err
}

// fetchEach gets the payloads one by one.
func (s *session) fetchEach(f *fetchList) (ended error) {
	for i, at := range f.statuses {
		one := f.single
		one.Reset()
		one.Add(f.To[i].Base, f.From[i].Base, f.To[i].Length)
		switch err := one.Run(s.process, s.permit, s.permit.Proof()); {
		case err == nil:
			s.fetched.Add(one.Bytes)
			s.written.Add(1)
		case errors.Is(err, samehost.ErrOutOfReach):
			wire.PutStatus(s.turn.statuses[at:], wire.StatusOutOfReach)
		default:
			wire.PutStatus(s.turn.statuses[at:], wire.StatusOutOfReach)
			ended = err
		}
	}
	return ended
}
