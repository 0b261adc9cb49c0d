package client

import (
	"errors"
	"slices"
	"strings"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/metadata"
	"kvferry/tcp/samehost"
	"kvferry/tcp/wire"
)

// What a lane to an engine on the same host does without sending payload (tcp/samehost):
//
//  1. fetchGranted copies the READs among the pieces just taken whose ranges are in a region that was granted, and then
//     the peer's epoch, in one system call, in this order. The copies are valid if the epoch is that of the grant: no memory
//     was taken back before, and it was this process and no other one. These pieces are never in flight.
//  2. choose decides for each of the others whether it is sent by address: a WRITE, for the peer to fetch, or one READ at
//     a time, to be granted its region.
//  3. comeBack queues a piece again that was answered without having been moved: now it can be fetched, or it is to be
//     sent with its payload.
//
// The first time that memory is out of reach, of either process, ends it for the lane: the system does not allow it, or
// the memory is of a kind that only its owner can read.
const (
	// leastByAddress is the payload of a WRITE that a copy by the target's kernel is worth a look at its address: less
	// passes through the socket with its header at no more cost.
	leastByAddress = 2 << 10
)

// reach is what a lane knows of a neighbour's memory. It is under the lane's lock, but for what only who sends uses.
type peerMemory struct {
	samehost.Memory
	permit *samehost.Permit // for the peer to copy from this process; nil: it does not
	asking bool             // a READ by address is in flight
	frame  [wire.GrantSize]byte
	copies *samehost.Copies // nil where the memory is out of reach
	chosen []piece          // scratch of fetchGranted: those that are fetched
	unsure bool             // a page may have to come first for what is chosen
}

// fetchGranted fetches what it can of the pieces, settles that, and returns the others, in the same memory. A page of the
// peer's that is not in memory may keep the copying thread for as long as it likes: a goroutine that may not wait copies
// only from where the lane has copied before, and leaves the rest to the writer.
func (l *lane) fetchGranted(pieces []piece, mayWait bool) []piece {
	r := &l.peerMemory
	l.mu.Lock()
	by, known := r.Proof()
	if !r.Reachable() || !known {
		l.mu.Unlock()
		return pieces
	}
	now := hostmem.Now()
	r.unsure = false
	rest, later := r.divide(pieces, mayWait, now)
	l.inHand, l.copying = rest, r.chosen
	l.mu.Unlock()
	l.leaveToWriter(later)
	if len(r.chosen) > 0 {
		var err error
		l.overtakable(r.unsure, func() { err = r.copies.Run(r.Process, nil, by) })
		if l.endCopying(rest, err == nil) {
			r.copies.Reset()
			return nil
		}
		rest = l.settleFetched(rest, err, now)
	}
	clear(pieces[len(rest):]) // for the collector
	return rest
}

// divide chooses what is fetched of the pieces, and returns the others in the same memory, and what is to be left to the
// writer. The lock is held.
func (r *peerMemory) divide(pieces []piece, mayWait bool, now hostmem.Time) (rest, later []piece) {
	rest = pieces[:0]
	for i := range pieces {
		p := &pieces[i]
		if p.op != core.Read || p.plain || r.copies.Full() || !r.Granted(p.remote, p.length) {
			rest = append(rest, *p)
			continue
		}
		if known := r.CopiedBefore(p.remote, p.length); !known || !now.Seen(p.local, p.length, hostmem.Writing) {
			if !mayWait && !(known && hostmem.Resident(p.local, p.length)) {
				later = append(later, *p)
				continue
			}
			r.unsure = true
		}
		r.chosen = append(r.chosen, *p)
		r.copies.Add(p.local, uintptr(p.remote), p.length)
	}
	return rest, later
}

// endCopying reports whether the lane was given up while it copied: then the pieces are settled, or about to be. Otherwise
// those that were copied in vain are in hand again.
func (l *lane) endCopying(rest []piece, valid bool) (stuck bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stuck == nil && !valid {
		l.inHand = slices.Concat(rest, l.copying)
	}
	l.copying = nil
	return l.stuck != nil
}

// settleFetched settles what was chosen if its bytes are valid, and adds it to the rest otherwise.
func (l *lane) settleFetched(rest []piece, err error, now hostmem.Time) []piece {
	r := &l.peerMemory
	if err == nil {
		if r.unsure {
			r.note(now)
		}
		for i := range r.chosen {
			l.count(&r.chosen[i])
			r.chosen[i].settle(nil)
		}
	} else {
		rest = append(rest, r.chosen...)
		l.forget(!errors.Is(err, samehost.ErrUnproven))
	}
	clear(r.chosen) // for the collector
	r.chosen = r.chosen[:0]
	r.copies.Reset()
	return rest
}

// leaveToWriter queues pieces again for the lane's own goroutine.
func (l *lane) leaveToWriter(pieces []piece) {
	if len(pieces) == 0 {
		return
	}
	l.source.putBack(pieces)
	l.wake()
}

// note remembers where was copied from, and to.
func (r *peerMemory) note(now hostmem.Time) {
	for i := range r.chosen {
		p := &r.chosen[i]
		r.NoteCopied(p.remote, p.length)
		now.Note(p.local, p.length, hostmem.Writing)
	}
}

// forget drops what is known of the peer's regions; lost says that it is not to be learnt again.
func (l *lane) forget(lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lost {
		l.peerMemory.Lose()
	} else {
		l.peerMemory.Forget()
	}
}

// choose sets whether a piece is sent by address. The lock is held.
func (l *lane) choose(p *piece, now hostmem.Time) {
	r := &l.peerMemory
	p.byAddress = r.Reachable() && !p.plain && !onDevice(l.segment.Descriptor(), p)
	switch {
	case !p.byAddress:
	case p.op == core.Read:
		p.byAddress = !r.asking && !r.Granted(p.remote, p.length)
		r.asking = r.asking || p.byAddress
	default:
		p.byAddress = r.permit != nil && p.length >= leastByAddress && uint64(p.local) < wire.MaxSource &&
			now.There(p.local, p.length, hostmem.Reading) // or else the target's session would wait for the page
	}
}

// onDevice reports whether a descriptor shows a range as memory of a device, which nobody can reach by its address.
func onDevice(d *metadata.Descriptor, p *piece) bool {
	buffer, ok := d.Contains(p.remote, p.length)
	return ok && !strings.HasPrefix(buffer.Name, "cpu") && buffer.Name != "*"
}

// comeBack takes a piece that was answered, but not moved.
func (l *lane) comeBack(p piece) {
	l.mu.Lock()
	r := &l.peerMemory
	if p.op == core.Read {
		r.asking = false
	}
	if p.plain {
		r.Lose()
	} else {
		r.Learn(wire.ParseGrant(r.frame[:]))
	}
	l.mu.Unlock()
	l.source.putBack([]piece{p})
	l.wake()
}
