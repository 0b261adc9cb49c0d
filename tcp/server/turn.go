package server

import (
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/trace"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// turn is what a session serves between two flushes. The vectors in owed point into statuses, grants, held regions and staging
// blocks.
type turn struct {
	requests    int    // served completely
	bytes       uint64 // their payload
	owed        [2 * turnRequests]sockio.Vector
	vectors     int
	sealed      int // vectors from here on are not merged with those before
	statuses    [turnRequests * wire.StatusSize]byte
	statusesEnd int
	grants      []byte // never beyond its capacity: what is owed points into it
	packed      []byte // likewise; of the READs that are strided
	readBytes   uint64 // READ payload owed
	reads       uint64 // READs that end with that payload

	held   []*core.Region // pinned; for others than the session's goroutine under its lock
	offers []*core.Offer  // in use; likewise
	load   *load          // nil in a session that was never asked for device memory

	// For the trace, by clock.Now; see trace.Session.Answered.
	served          []trace.Served
	copying, copied time.Duration
}

func newTurn() *turn { return &turn{held: make([]*core.Region, 0, turnRequests+1)} }

func (t *turn) owePayload(base uintptr, length uint64) {
	t.readBytes += length
	t.owe(base, length)
}

// isLong reports whether what is owed has a long payload, and none by an offer.
func (t *turn) isLong() bool { return t.readBytes >= bulkLength && len(t.offers) == 0 }

func (t *turn) oweStatus(code uint32) {
	b := t.statuses[t.statusesEnd : t.statusesEnd+wire.StatusSize]
	t.statusesEnd += wire.StatusSize
	wire.PutStatus(b, code)
	t.owe(hostmem.AddressOf(b), wire.StatusSize)
}

func (t *turn) oweGrant(g wire.Grant) {
	if t.grants == nil {
		t.grants = make([]byte, 0, turnRequests*wire.GrantSize)
	}
	end := len(t.grants)
	t.grants = t.grants[:end+wire.GrantSize]
	wire.PutGrant(t.grants[end:], g)
	t.owe(hostmem.AddressOf(t.grants[end:]), wire.GrantSize)
}

// endOffers ends the uses of offers but the last ones. The session's lock is held.
func (t *turn) endOffers(kept int) {
	ended := len(t.offers) - kept
	for _, o := range t.offers[:ended] {
		o.End()
	}
	n := copy(t.offers, t.offers[ended:])
	clear(t.offers[n:])
	t.offers = t.offers[:n]
}

// takesVectors reports whether there is room for the vectors of a request, or of a run of a strided one.
func (t *turn) takesVectors() bool { return t.vectors+2 <= len(t.owed) }

// room is memory for the payload of a READ that is strided; nil where the turn has no more of it.
func (t *turn) room(length uint64) []byte {
	if t.packed == nil {
		t.packed = make([]byte, 0, wire.MaxStrided)
	}
	end := len(t.packed)
	if uint64(cap(t.packed)-end) < length {
		return nil
	}
	t.packed = t.packed[:end+int(length)]
	return t.packed[end:]
}

func (t *turn) owe(base uintptr, length uint64) {
	// In place: a turn owes no more than there is room for.
	t.vectors = t.sealed + len(sockio.Extend(t.owed[t.sealed:t.vectors], base, length))
}

func (t *turn) reset() {
	t.requests, t.bytes, t.vectors, t.sealed, t.statusesEnd, t.readBytes, t.reads = 0, 0, 0, 0, 0, 0, 0
	t.grants, t.packed = t.grants[:0], t.packed[:0]
	t.served, t.copying, t.copied = t.served[:0], 0, 0
}

// record notes a request whose payload has come, or is owed. began and received are when its first and its last byte were.
func (t *turn) record(s *trace.Session, h wire.Header, onDevice bool, began, received time.Duration) {
	one := trace.Served{Write: h.Op == wire.Write, ByAddress: h.ByAddress, OnDevice: onDevice, Bytes: h.Length, Began: began}
	if one.Write {
		one.Received = received
	}
	t.served = s.Record(t.served, one)
}

// hasLoad reports whether the turn has a load.
func (t *turn) hasLoad() bool { return t.load != nil && t.load.lease != nil }

// span is the smallest range that holds every range added to it. The empty one meets nothing.
type span struct{ low, high uint64 }

func (u *span) add(h wire.Header) {
	if u.high == 0 {
		u.low = h.Addr
	}
	u.low, u.high = min(u.low, h.Addr), max(u.high, h.Addr+h.Length)
}

func (u *span) meets(h wire.Header) bool { return h.Addr < u.high && u.low < h.Addr+h.Length }
