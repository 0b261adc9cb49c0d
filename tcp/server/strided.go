package server

import (
	"errors"
	"slices"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// Strided requests (wire/strided.go):
//
//  1. nextStrided takes the body, which says where the runs of bytes lie, and checks it.
//  2. Their regions are pinned (pin_strided.go). Gaps between the runs are not touched.
//  3. WRITE: applyStrided copies the payload from the read-ahead buffer to its places. It does not touch them while it waits for
//     the peer.
//  4. READ: readOutStrided packs the runs into memory of the turn, and owes them from there. Where they are long in this process,
//     and no offer has to be left, it owes them from where they are (sockio.MinDirectRun).
//  5. stageStrided takes their place for device memory: the payload lies together in the leases of loads, and each load has a
//     strided move of it (staged.go).
//
// A request whose runs lie together is served as any other.

var _ = [1]struct{}{}[wire.MaxAxes-hostmem.MaxAxes]

// strided is a strided request.
type strided struct {
	wire.Header                 // its size is that of the payload
	bounds      wire.Header     // the same request for the range that holds all runs
	key         wire.Key        // of the offer that it is for; zero for none
	id          uint64          // of its transfer
	memory      hostmem.Strided // its runs
}

var errNotGreeted = errors.New("a strided request on a connection that did not begin with a hello")

// nextStrided takes the body of a strided request.
func (s *session) nextStrided(h wire.Header) error {
	if !s.greeted {
		return errNotGreeted
	}
	if err := s.fillTo(wire.StridedBody(h.Axes)); err != nil {
		return err
	}
	body, low, span, err := h.ParseStrided(s.ahead[s.parsed:])
	s.parsed += wire.StridedBody(h.Axes)
	if err != nil {
		return &rejection{Header: h, code: wire.StatusRejected, reason: err}
	}
	r := &s.strided
	*r = strided{Header: h, bounds: h, key: body.Key, id: body.ID, memory: hostmem.Strided{Base: uintptr(h.Addr), Run: body.Run, Count: h.Axes}}
	r.bounds.Addr, r.bounds.Length = low, span
	for i, a := range body.Axes[:h.Axes] {
		r.memory.Axes[i] = hostmem.Axis{Count: a.Count, Stride: a.Stride}
	}
	return nil
}

// moveStrided moves the payload of a WRITE, and owes the answer to a request.
func (s *session) moveStrided(r *strided, region *core.Region) error {
	s.serving = region
	var err error
	switch {
	case r.Axes == 0:
		if err = s.move(r.Header, region); r.Op == wire.Write && region.Device == nil {
			s.leaveOffer()
		}
		return err
	case region.Device != nil:
		err = s.stageStrided(r, region.Device)
	case r.Op == wire.Read:
		err = s.readOutStrided(r)
		s.leaveOffer() // it is answered from a copy
	default:
		err = s.applyStrided(r)
		s.leaveOffer()
	}
	if err == nil {
		s.serving = nil
		if r.Op == wire.Read {
			s.turn.reads++
		}
	}
	return err
}

// applyStrided moves the payload of a WRITE to its places.
func (s *session) applyStrided(r *strided) error {
	if err := s.finishBefore(r.bounds); err != nil {
		return err
	}
	s.bulk = false
	memory := r.memory
	memory.Merge()
	for done := uint64(0); done < r.Length; {
		if s.parsed == s.filled {
			s.parsed, s.filled = 0, 0
			err := s.receiveWithoutOffer(r.Header)
			switch {
			case errors.Is(err, core.ErrRevoked), err == errEnded:
				return err
			case err != nil:
				return cutShort(r.Header, r.Length-done, err)
			}
		}
		payload := s.ahead[s.parsed:s.filled]
		payload = payload[:min(uint64(len(payload)), r.Length-done)]
		if err := s.copier.Scatter(&memory, done, payload); err != nil {
			return inaccessible(r.Header, s.serving, err)
		}
		s.parsed += len(payload)
		done += uint64(len(payload))
	}
	s.bytesIn.Add(r.Length)
	s.written.Add(1)
	s.turn.oweStatus(wire.StatusOK)
	return nil
}

// readOutStrided owes the answer to a READ. By an offer it is always from a copy of the runs.
func (s *session) readOutStrided(r *strided) error {
	s.bulk = false
	if s.fetchList != nil && s.fetchList.meets(r.bounds) { // a WRITE came first
		if err := s.fetch(); err != nil {
			return err
		}
	}
	memory := r.memory
	memory.Merge()
	runs := int(r.Length / memory.Run)
	if memory.Run >= sockio.MinDirectRun && runs < len(s.turn.owed) && s.offersUsed == 0 && !s.servesUnverified() {
		return s.oweRuns(r, &memory, runs)
	}
	packed := s.turn.room(r.Length)
	if packed == nil {
		offer := s.leaveOffer()
		if err := s.flush(); err != nil {
			return err
		}
		if err := s.resumeOffer(r.Header, offer); err != nil {
			return err
		}
		packed = s.turn.room(r.Length)
	}
	if err := s.copier.Gather(packed, &memory, 0); err != nil {
		return inaccessible(r.Header, s.serving, err)
	}
	s.turn.oweStatus(wire.StatusOK)
	s.turn.owePayload(hostmem.AddressOf(packed), r.Length)
	return nil
}

// oweRuns owes the answer to a READ, from where its runs are. A turn has room for them and a status.
func (s *session) oweRuns(r *strided, memory *hostmem.Strided, runs int) error {
	if s.turn.vectors+1+runs > len(s.turn.owed) {
		if err := s.flush(); err != nil {
			return err
		}
	}
	s.reads.add(r.bounds)
	s.turn.oweStatus(wire.StatusOK)
	for run := range memory.Runs() {
		s.turn.owePayload(run, memory.Run)
	}
	return nil
}

// servesUnverified reports whether memory of the request that is served has to be checked first: see readOut.
func (s *session) servesUnverified() bool {
	held := s.turn.held
	return slices.ContainsFunc(held[len(held)-s.pinned:], (*core.Region).Unverified)
}

// stageStrided moves or owes the payload of a request for device memory.
func (s *session) stageStrided(r *strided, device *staging.Device) error {
	if s.staged == nil {
		s.startStaging()
	}
	to, opposite, step := route{device, staging.In}, staging.Out, s.stageRunsIn
	if r.Op == wire.Read {
		to, opposite, step = route{device, staging.Out}, staging.In, s.stageRunsOut
	}
	if s.staged.touched[opposite].meets(r.bounds) {
		if err := s.catchUp(); err != nil {
			return err
		}
	}
	s.bulk = r.Op == wire.Write && r.Length >= bulkLength
	memory := r.memory // of the jobs from here on
	memory.Merge()
	most := device.MostRuns(to.way == staging.In && !memory.IsDisjoint()) // in a load
	for rest := r.Header; rest.Length > 0; {
		if !s.turn.takesVectors() || s.turn.load.runs >= most {
			if err := s.flush(); err != nil {
				return err
			}
		}
		next := memory.Cut(r.Length-rest.Length, 1)
		rest.Addr = uint64(next.Base) // whose alignment the place has
		place, err := s.room(r.Header, rest, to)
		if err != nil {
			return err
		}
		s.staged.touched[to.way].add(r.bounds)
		l := s.turn.load
		if move := l.last(); move.Runs == nil {
			move.Runs, move.Skip = &memory, r.Length-rest.Length
		}
		place.Length = min(place.Length, (most-l.runs)*memory.Run)
		if err := step(r, &rest, place); err != nil {
			return err
		}
	}
	s.turn.load.growing = false
	if r.Op == wire.Write {
		s.bytesIn.Add(r.Length)
		s.written.Add(1)
		s.turn.oweStatus(wire.StatusOK)
	}
	return nil
}

// stageRunsIn receives bytes into their place in a block.
func (s *session) stageRunsIn(r *strided, rest *wire.Header, place sockio.Vector) (err error) {
	n := s.takeAhead(place)
	if n == 0 {
		n, err = s.receiveStaged(place)
	}
	switch {
	case err != nil:
		return cutShort(r.Header, rest.Length, err)
	case n > 0:
		s.turn.load.growRuns(rest, n)
	}
	return nil
}

// stageRunsOut owes bytes from a block that a job is going to fill.
func (s *session) stageRunsOut(r *strided, rest *wire.Header, place sockio.Vector) error {
	if rest.Length == r.Length {
		s.turn.oweStatus(wire.StatusOK)
	}
	s.turn.owePayload(place.Base, place.Length)
	s.turn.load.growRuns(rest, place.Length)
	return nil
}
