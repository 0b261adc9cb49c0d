package client

import (
	"errors"
	"slices"
	"strings"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/metadata"
	"kvferry/core/metrics"
	"kvferry/core/trace"
	"kvferry/tcp/samehost"
	"kvferry/tcp/wire"
)

// How a lane to an engine on the same host does without sending payload (tcp/samehost):
//
//  1. fetchGranted copies the READs among the pieces just taken whose ranges are in a granted region, and then the peer's epoch,
//     in one system call, in this order. The copies are valid if the epoch is that of the grant. These pieces are never in
//     flight.
//  2. choose decides for each other piece whether it is sent by address: a WRITE, for the peer to copy, or one READ at a time,
//     whose region the peer is to grant.
//  3. comeBack queues a piece again that was answered but not moved. Now it can be fetched, or it is sent with its payload.
//
// When a copy fails for the first time, the lane stops trying: the system does not allow it, or the memory is of a kind that
// only its owner can read.

// minByAddress is the least payload of a WRITE that is sent by address. Less passes through the socket with its header at no
// more cost.
const minByAddress = 2 << 10

// peerMemory is what a lane knows of the memory of a peer on this host. It is under the lane's lock, except for fields that only
// the goroutine that sends uses.
type peerMemory struct {
	samehost.Memory
	permit *samehost.Permit // for the peer to copy from this process; nil where it does not
	asking bool             // a READ by address is in flight
	frame  [wire.GrantSize]byte
	copies *samehost.Copies // nil where the memory is out of reach
	chosen []piece          // scratch of fetchGranted: those that are fetched
	unsure bool             // a page may have to come first for what is chosen
}

// fetchGranted copies the pieces that it can, settles them, and returns the others, in the same slice. A page of the peer that is
// not in memory may hold up the copying thread for any time. So a goroutine that may not wait copies only from memory that the
// lane has copied before, and leaves the rest to the writer.
func (l *lane) fetchGranted(pieces []piece, mayWait bool) []piece {
	r := &l.peerMemory
	l.mu.Lock()
	if l.stuck != nil { // since the pieces were taken: giveUpStuck has not seen them
		l.mu.Unlock()
		l.source.putBack(pieces)
		return nil
	}
	l.inHand = pieces
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
		began := nowIfTraced(r.chosen)
		l.overtakable(r.unsure, func() { err = r.copies.Run(r.Process, nil, by) })
		if l.endCopying(rest, err == nil) {
			r.copies.Reset()
			return nil
		}
		rest = l.settleFetched(rest, err, now, began)
	}
	clear(pieces[len(rest):]) // for the collector
	return rest
}

// divide chooses the pieces to be copied. It returns the others in the same slice, and those that are left to the writer. The lock
// is held.
func (r *peerMemory) divide(pieces []piece, mayWait bool, now hostmem.Time) (rest, later []piece) {
	rest = pieces[:0]
	for i := range pieces {
		p := &pieces[i]
		if p.op != core.Read || p.plain || p.strided != nil || r.copies.Full() || !r.Granted(p.remote, p.length) {
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

// endCopying reports whether the lane was given up while it copied. Then the pieces are settled, or about to be. Otherwise pieces
// whose copies are not valid are in hand again.
func (l *lane) endCopying(rest []piece, valid bool) (stuck bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stuck == nil && !valid {
		l.inHand = slices.Concat(rest, l.copying)
	}
	l.copying = nil
	return l.stuck != nil
}

// settleFetched settles the chosen pieces if their bytes are valid, and otherwise adds them to the rest. began is when they began
// to be copied, for the trace.
func (l *lane) settleFetched(rest []piece, err error, now hostmem.Time, began time.Duration) []piece {
	r := &l.peerMemory
	if err == nil {
		if r.unsure {
			r.note(now)
		}
		l.recordFetched(began)
		for i := range r.chosen {
			p := &r.chosen[i]
			l.count(p, metrics.Host)
			p.settle(nil)
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

// nowIfTraced is clock.Now if a copy of a piece is to be recorded, and otherwise 0.
func nowIfTraced(pieces []piece) time.Duration {
	for i := range pieces {
		if now := pieces[i].work.Trace().Now(); now != 0 {
			return now
		}
	}
	return 0
}

// recordFetched records the copies of the chosen pieces, those of one batch together.
func (l *lane) recordFetched(began time.Duration) {
	chosen := l.peerMemory.chosen
	for i := 0; i < len(chosen); {
		batch, bytes := chosen[i].work.Trace(), uint64(0)
		for ; i < len(chosen) && chosen[i].work.Trace() == batch; i++ {
			bytes += chosen[i].length
		}
		batch.Copied(trace.Fetch, l.segment.Name, bytes, began)
	}
}

// leaveToWriter queues pieces again for the lane's writer.
func (l *lane) leaveToWriter(pieces []piece) {
	if len(pieces) == 0 {
		return
	}
	l.source.putBack(pieces)
	l.wake()
}

// note records the memory of the chosen pieces, on both sides, as touched.
func (r *peerMemory) note(now hostmem.Time) {
	for i := range r.chosen {
		p := &r.chosen[i]
		r.NoteCopied(p.remote, p.length)
		now.Note(p.local, p.length, hostmem.Writing)
	}
}

// forget drops the grants. lost says that the lane stops trying to copy.
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
	p.byAddress = r.Reachable() && !p.plain && p.strided == nil && !onDevice(l.segment.Descriptor(), p)
	switch {
	case !p.byAddress:
	case p.op == core.Read:
		p.byAddress = !r.asking && !r.Granted(p.remote, p.length)
		r.asking = r.asking || p.byAddress
	default:
		p.byAddress = r.permit != nil && p.length >= minByAddress && uint64(p.local) < wire.MaxSource &&
			now.There(p.local, p.length, hostmem.Reading) // otherwise the target's session would wait for the page
	}
}

// onDevice reports whether a descriptor shows a range as memory of a device, which cannot be reached by its address.
func onDevice(d *metadata.Descriptor, p *piece) bool {
	buffer, ok := d.Contains(p.remote, p.length)
	return ok && !strings.HasPrefix(buffer.Name, "cpu") && buffer.Name != "*"
}

// comeBack takes a piece that was answered but not moved.
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
