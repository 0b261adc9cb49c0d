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
//  2. It receives the rest of the payload straight into the region, and owes a status frame.
//  3. READ: readOut owes a status frame and the payload, which stays in the region until flush sends it (send.go).
//  4. Memory that cannot be accessed is the fault of one request: inaccessible rejects it.

// apply moves the payload of a WRITE into its region.
func (s *session) apply(h wire.Header) error {
	if err := s.finishBefore(h); err != nil {
		return err
	}
	s.bulk = h.Length >= bulkLength
	left := sockio.Vector{Base: uintptr(h.Addr), Length: h.Length}
	buffered := min(uint64(s.filled-s.parsed), left.Length)
	if err := s.copier.Fill(left.Base, s.ahead[s.parsed:][:buffered]); err != nil {
		return inaccessible(h, s.serving, err)
	}
	s.parsed += int(buffered)
	for placed := buffered; placed < left.Length; {
		left.Base += uintptr(placed)
		left.Length -= placed
		s.parsed, s.filled = 0, 0
		var err error
		placed, err = s.receive(left)
		switch {
		case errors.Is(err, unix.EFAULT):
			return inaccessible(h, s.serving, err)
		case err != nil:
			return cutShort(h, left.Length, err)
		}
	}
	s.bytesIn.Add(h.Length)
	s.written.Add(1)
	if h.V2 {
		s.turn.oweStatus(wire.StatusOK)
	}
	return nil
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
