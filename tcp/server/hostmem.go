package server

import (
	"errors"
	"fmt"
	"io"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"golang.org/x/sys/unix"
)

// Requests for host memory, whose region is pinned already (pin.go):
//
//  1. WRITE: apply waits for READs of the same memory before it, and copies what was read ahead of the payload into its place.
//  2. It receives the rest of the payload straight into the region, and owes a status frame. By an offer it does not touch the
//     region while it waits for the peer.
//  3. READ: readOut owes a status frame and the payload, which stays in the region until flush sends it (send.go).
//  4. Memory that cannot be accessed is the fault of one request: inaccessible rejects it.

// apply moves the payload of a WRITE into its region.
func (s *session) apply(h wire.Header) error {
	if err := s.finishBefore(h); err != nil {
		return err
	}
	s.bulk = h.Length >= bulkLength
	left := sockio.Vector{Base: uintptr(h.Addr), Length: h.Length}
	for {
		if buffered := min(uint64(s.filled-s.parsed), left.Length); buffered > 0 {
			if err := s.copier.Fill(left.Base, s.ahead[s.parsed:][:buffered]); err != nil {
				return inaccessible(h, s.serving, err)
			}
			s.parsed += int(buffered)
			left = behind(left, buffered)
		}
		if left.Length == 0 {
			break
		}
		s.parsed, s.filled = 0, 0
		placed, err := s.receivePayload(h, left)
		switch {
		case errors.Is(err, unix.EFAULT):
			return inaccessible(h, s.serving, err)
		case errors.Is(err, core.ErrRevoked), err == errEnded:
			return err
		case err != nil:
			return cutShort(h, left.Length, err)
		}
		left = behind(left, placed)
	}
	s.bytesIn.Add(h.Length)
	s.written.Add(1)
	if h.V2 {
		s.turn.oweStatus(wire.StatusOK)
	}
	return nil
}

// behind is what is left of a vector behind so many bytes.
func behind(v sockio.Vector, bytes uint64) sockio.Vector {
	return sockio.Vector{Base: v.Base + uintptr(bytes), Length: v.Length - bytes}
}

// receivePayload is receive. Where the place is offered, it waits for bytes with room in the read-ahead buffer only.
func (s *session) receivePayload(h wire.Header, place sockio.Vector) (placed uint64, err error) {
	if s.offersUsed == 0 {
		return s.receive(place)
	}
	v := s.plan(place)
	n, again, err := s.conn.TryReceive(v)
	if err != nil {
		return 0, err
	}
	if !again {
		return s.received(v, place, n), nil
	}
	return 0, s.receiveWithoutOffer(h)
}

// finishBefore finishes the requests before a WRITE that move bytes of the same memory.
func (s *session) finishBefore(h wire.Header) error {
	if s.reads.meets(h) {
		if err := s.catchUp(); err != nil { // the READ came first, and gets what was there before
			return err
		}
	}
	if s.fetchList != nil && s.fetchList.meets(h) {
		return s.fetch()
	}
	return nil
}

// readOut owes the answer to a READ.
func (s *session) readOut(h wire.Header, region *core.Region) error {
	if region.Unverified() && !hostmem.Readable(uintptr(h.Addr), h.Length) {
		return inaccessible(h, region, unix.EFAULT)
	}
	s.bulk = false
	s.reads.add(h)
	if h.V2 {
		s.turn.oweStatus(wire.StatusOK)
	}
	s.turn.owePayload(uintptr(h.Addr), h.Length)
	return nil
}

// errInaccessible is about memory that its owner has unmapped or protected without unregistering it first.
var errInaccessible = errors.New("registered memory cannot be accessed: it was unmapped or protected, or its file cut short")

// inaccessible rejects a request for such memory. The region has the fault noted before the peer can ask for it again.
func inaccessible(h wire.Header, region *core.Region, err error) error {
	r := &rejection{Header: h, code: wire.StatusInaccessible, reason: fmt.Errorf("%w: %w", errInaccessible, err), region: region}
	r.first = region != nil && region.NoteFault()
	return r
}

// errCutShort is in the error of a WRITE whose payload did not arrive completely.
var errCutShort = errors.New("missing")

func cutShort(h wire.Header, missing uint64, err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d bytes of a WRITE of %d at %#x are %w: %w", missing, h.Length, h.Addr, errCutShort, err)
}
