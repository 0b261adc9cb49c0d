package client

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/status"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
)

// The way of a request on the initiator, from the queue of its peer on:
//
//  1. submit queues a work as a cursor, and dispatch sees to it that there are carriers for the queue: lanes to a peer
//     that acknowledges (version 2), otherwise one-shot connections.
//  2. A carrier takes pieces from the queue as fast as it can send them: take. Cursors have their turns, so that a
//     short batch does not wait for a long one before it.
//  3. A carrier settles what was acknowledged. What was in flight on one that broke comes back: giveBack queues it again,
//     up to MC_RETRY_CNT times.
//  4. A range that the peer refused, or that its descriptor does not show, is doubtful: resolve fetches the descriptor
//     again, and the piece is queued once more or fails.

const (
	// oneShotSize is the most that one request carries where each takes a connection of its own. Elsewhere it is
	// MC_TCP_SLICE_SIZE: small enough that all lanes share a large task, large enough that its header costs nothing.
	oneShotSize = 16 << 20
	// turnSize is what a cursor gives before the next one has its turn, and what a queue holds for each lane that is
	// opened beyond the first.
	turnSize = 1 << 20
	// hurriedSize is for each lane what turnSize is otherwise, when a work comes in parts: so all lanes begin soon, and
	// have all of a part before they have the next.
	stagedSize = 256 << 10
	// strangerSize is it for what Mooncake is to send: it sends from one thread, so lanes only divide that up.
	mooncakeSize = 4 << 20
	// shortWork is the most bytes of a work that does not queue behind longer ones: where it finds every lane laden, with
	// more than ladenBytes in flight, the first one is reserved for the likes of it, for reserveTime.
	shortWork   = 64 << 10
	ladenBytes  = 256 << 10
	reserveTime = time.Second
	// shortLoad is the most bytes, queued and in flight, whose answers are worth polling for all the time.
	shortLoad = 512 << 10
	// maxDoubtful bounds the pieces that wait for the descriptor; the queue stands still meanwhile.
	maxUnverified = 1024
	// assistTime is how long somebody who waits for a short answer looks for it himself, instead of sleeping: some round
	// trips in a rack, and some wake-ups of a thread.
	spinTime = 150 * time.Microsecond
)

// carrier takes a peer's pieces over the network.
type carrier interface {
	// idle reports whether it holds nothing.
	idle() bool
	// load is how many bytes it holds.
	load() uint64
	// traffic is how many bytes it has sent and received.
	traffic() uint64
	// cold reports whether it receives into memory that may have to come first.
	waitsForPage() bool
	// writeIfIdle has the calling goroutine send what there is to take, without waiting, and reports whether it did.
	writeIfIdle() bool
	// assist has the calling goroutine receive what has come, without waiting. It holds something.
	assist()
	// ease tells it whether somebody assists again and again, so that it need not wake up itself.
	setSpinning(bool)
	// nudge tells it that there may be something to take.
	wake()
	// quit makes it end: it stops moving bytes, and gives back what it holds with that reason.
	quit(reason error)
	// carriesAborted reports whether it holds a piece of an aborted work.
	carriesAborted() bool
	// destination is the engine that it is connected to.
	destination() destination
}

// peer is the owner of a segment, as the initiator sees it.
type peer struct {
	client  *Client
	segment *core.Segment

	mu           sync.Mutex
	cursors      []*cursor // the first is next
	returned     []piece   // to be sent again, before the cursors
	queued       uint64    // bytes in cursors and returned
	staged       bool      // the last work was
	reading      bool      // the last work was a READ
	turn         uint64    // bytes that the first cursor has given since it is first
	distance     distance
	reserved     time.Time // until when the first lane is for short works
	unverified   []piece
	blocked      []piece   // WRITEs that wait for former connections to be over; see quarantine
	overtaken    []carrier // that take nothing more, and have not ended; see lane_stuck.go
	rechecking   bool      // they are going to be looked at again
	resolving    bool      // a goroutine runs resolve
	round        int32     // how often the descriptor was fetched for the doubtful
	checked      bool      // every range is looked up in the descriptor: the peer checks none, or has refused one
	lossesInARow int       // connections lost under work in a row without a piece settled
	settled      uint64    // bytes settled when a connection was last lost
	unconfirmed  bool      // a connection was lost: the peer may have restarted, its descriptor is to be fetched again
	closed       error     // why it takes nothing more

	carriers atomic.Pointer[[]carrier] // replaced under the lock
	lastHost atomic.Pointer[string]    // the host at which the data port was found the last time
	answers  sockio.Spinner

	bytesOut, bytesIn, errors atomic.Uint64
}

// submit queues a work.
func (p *peer) submit(w *core.Work) {
	p.mu.Lock()
	if p.closed != nil {
		p.mu.Unlock()
		w.Settle(w.Head, 0, w.Bytes, p.closed)
		return
	}
	p.cursors = append(p.cursors, newCursor(w))
	p.queued += w.Bytes
	reading := w.Tasks[w.Head].Opcode == core.Read
	p.staged, p.reading = w.Staged, reading
	p.client.Limiter.Note(w.Bytes)
	if w.Bytes <= shortWork && p.isLaden() {
		p.reserved = time.Now().Add(reserveTime)
	}
	p.mu.Unlock()
	p.dispatch(!w.Staged || reading) // to ask takes no time
}

// isLaden reports whether a short work would wait on every carrier but a reserved one. The lock is held.
func (p *peer) isLaden() bool {
	reserved := p.reservedLane()
	return len(p.listed()) > 0 && !slices.ContainsFunc(p.listed(), func(c carrier) bool { return c != reserved && c.load() <= ladenBytes })
}

// reservedLane is the lane for short works, if there is one, and others beside it. The lock is held.
func (p *peer) reservedLane() carrier {
	if len(p.listed()) < 2 || p.reserved.IsZero() || time.Now().After(p.reserved) {
		return nil
	}
	return p.listed()[0]
}

// dispatch starts the carriers that the queue is worth, and nudges those there are. When mayWrite is set, a lane that
// has nothing to do is written to by the calling goroutine.
func (p *peer) dispatch(mayWrite bool) {
	p.mu.Lock()
	d := p.segment.Descriptor()
	pipelined := p.pipelined(d)
	if p.closed == nil {
		p.startCarriers(pipelined)
	}
	carriers := p.listed()
	wanted := p.wanted(pipelined)
	reserved := p.reservedLane()
	if reserved != nil && !p.hasShort() {
		reserved, carriers = nil, carriers[1:]
	}
	p.mu.Unlock()

	var mine carrier // the others start first: what this goroutine does takes longer than to wake them
	if mayWrite && wanted > 0 {
		if i := slices.IndexFunc(carriers, carrier.idle); i >= 0 {
			mine = carriers[i]
			wanted--
		}
	}
	for _, idle := range []bool{true, false} {
		for _, c := range carriers {
			if wanted > 0 && c != mine && c.idle() == idle {
				c.wake()
				wanted--
			}
		}
	}
	if reserved != nil && reserved != mine {
		reserved.wake() // nobody else takes what is short
	}
	if mine != nil && !mine.writeIfIdle() {
		mine.wake()
	}
}

// pipelined reports whether requests travel on lanes; otherwise each has a connection of its own.
func (p *peer) pipelined(d *metadata.Descriptor) bool {
	return p.acknowledges(d) && p.client.Config.ConnectionPool
}

// acknowledges reports whether the peer is spoken to in version 2.
func (p *peer) acknowledges(d *metadata.Descriptor) bool {
	return d.ProtoVersion >= 2 && !p.client.Config.ForceProtoV1
}

// wanted is the number of carriers that the queue is worth. The lock is held.
func (p *peer) wanted(pipelined bool) int {
	if p.isEmpty() || len(p.unverified) >= maxUnverified {
		return 0
	}
	lanes := p.worth(p.queued)
	if !pipelined {
		lanes = p.requests()
	}
	if pipelined && time.Now().Before(p.reserved) {
		lanes++
	}
	return int(max(1, min(lanes, uint64(p.mostCarriers(pipelined)))))
}

// mostCarriers is how many carriers there may be. The lock is held.
func (p *peer) mostCarriers(pipelined bool) int {
	config := p.client.Config
	most := config.LanesPerPeer
	if pipelined && p.distance != near {
		most = min(most, config.LanesPerLink)
		if time.Now().Before(p.reserved) {
			most = min(most+1, config.LanesPerPeer)
		}
	}
	return most
}

// distance is whether there is a link between a peer and this host, or rack.
type distance int

const (
	unknown distance = iota // no lane was ever connected
	near
	far
)

// farAway is from which round trip on a peer is far. In a rack it is some tens of microseconds.
const farAway = 300 * time.Microsecond

// meet notes how far away the peer is, when a lane has been connected. More lanes may have their use for that.
func (p *peer) noteConnected(roundTrip time.Duration) {
	p.mu.Lock()
	first := p.distance == unknown
	if p.distance = near; roundTrip >= farAway {
		p.distance = far
	}
	p.mu.Unlock()
	if first {
		p.dispatch(false)
	}
}

// requests is how many requests are queued, or more of them when that would take counting. The lock is held.
func (p *peer) requests() uint64 {
	n := uint64(len(p.returned))
	for _, c := range p.cursors {
		if c.left <= oneShotSize && c.left == c.work.Tasks[c.task].Length-c.skip {
			n++
		} else {
			n += c.left
		}
	}
	return n
}

// isEmpty reports whether there is nothing to take. The lock is held.
func (p *peer) isEmpty() bool { return len(p.cursors) == 0 && len(p.returned) == 0 }

// startCarriers opens the connections that are missing. The lock is held.
func (p *peer) startCarriers(pipelined bool) {
	for len(p.listed()) < p.wanted(pipelined) {
		var c carrier
		var run func()
		if pipelined {
			l := newLane(p)
			c, run = l, l.run
		} else {
			o := newOneShot(p)
			c, run = o, o.run
		}
		p.list(append(slices.Clip(p.listed()), c))
		p.client.running.Go(run)
	}
}

// burden is how many bytes are queued or in flight. The lock is held.
func (p *peer) held() uint64 {
	all := p.queued
	for _, c := range p.listed() {
		all += c.load()
	}
	return all
}

// isShort reports whether what is queued and in flight is.
func (p *peer) isShort() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held() <= shortLoad
}

// share is how many bytes a lane may have in flight: of all that is queued or in flight, as much as every other of the
// lanes that this is worth. What a socket takes, or that headers alone fill none, would have the lane that comes first
// take too much.
func (p *peer) share() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.held()
	sharers := max(1, min(p.worth(all), uint64(len(p.listed()))))
	return (all + sharers - 1) / sharers
}

// worth is the number of lanes that so many bytes are worth. The lock is held.
func (p *peer) worth(bytes uint64) uint64 {
	each := uint64(turnSize)
	switch {
	case p.reading && !p.segment.Descriptor().IsKvferry:
		each = mooncakeSize
	case p.staged:
		each = stagedSize
	}
	return (bytes + each - 1) / each
}

// take moves pieces from the queue to the end of taken, for a carrier: at most so many, and no more once they have that
// many bytes.
func (p *peer) take(c carrier, taken []piece, pieces int, bytes uint64) []piece {
	p.mu.Lock()
	defer p.mu.Unlock()
	mine := p.open(c)
	d := p.segment.Descriptor()
	to := c.destination()
	if to.owner != nil && to.owner.Identity != d.Identity {
		c.quit(errOutdated)
		return taken
	}
	limit := uint64(p.client.Config.SliceSize)
	if !p.pipelined(d) {
		limit = oneShotSize
	}
	checked := p.checked || !p.acknowledges(d)
	for got := uint64(0); pieces > 0 && got < bytes && len(p.unverified) < maxUnverified; {
		next, ok := p.next(limit, d, mine)
		if !ok {
			break
		}
		if err := next.work.Aborted(); err != nil {
			next.settle(err)
			continue
		}
		if checked && !shows(d, &next) {
			p.revalidate(next)
			continue
		}
		if to.owner != nil && !p.mayGoTo(to, &next) {
			continue
		}
		taken = append(taken, next)
		pieces--
		got += next.length
	}
	return taken
}

// open is which works a carrier may take from: short ones are left to the reserved lane, and long ones to the others. The
// lock is held.
func (p *peer) open(c carrier) func(*cursor) bool {
	switch reserved := p.reservedLane(); {
	case reserved == c:
		return (*cursor).short
	case reserved != nil && reserved.load() <= ladenBytes:
		return func(c *cursor) bool { return !c.short() }
	}
	return func(*cursor) bool { return true }
}

// next removes a piece from the queue, of the first work that is open. The lock is held.
func (p *peer) next(limit uint64, d *metadata.Descriptor, open func(*cursor) bool) (piece, bool) {
	if n := len(p.returned); n > 0 {
		next := p.returned[n-1]
		p.returned = p.returned[:n-1]
		p.queued -= next.length
		return next, true
	}
	for len(p.cursors) > 0 {
		at := slices.IndexFunc(p.cursors, open)
		if at < 0 {
			break
		}
		c := p.cursors[at]
		if err := c.work.Aborted(); err != nil {
			p.queued -= c.left
			c.settleRest(err)
			p.dropCursor(at)
			continue
		}
		if at == 0 && p.turn >= turnSize && len(p.cursors) > 1 && !c.work.Staged {
			p.dropCursor(0)
			p.cursors = append(p.cursors, c)
			continue
		}
		if c.work.WillFail(c.task) {
			p.queued -= c.settleTask(core.ErrPartFailed)
			p.dropIfCut(at)
			continue
		}
		next := c.cut(limit, d)
		if at == 0 {
			p.turn += next.length
		}
		p.queued -= next.length
		p.dropIfCut(at)
		return next, true
	}
	return piece{}, false
}

func (p *peer) dropIfCut(at int) {
	if p.cursors[at].left == 0 {
		p.dropCursor(at)
	}
}

func (p *peer) dropCursor(at int) {
	if at > 0 {
		p.cursors = slices.Delete(p.cursors, at, at+1)
		return
	}
	p.cursors[0] = nil
	p.cursors = p.cursors[1:]
	p.turn = 0
}

// hasShort reports whether a short work is queued, or something that is to be sent again. The lock is held.
func (p *peer) hasShort() bool {
	return len(p.returned) > 0 || slices.ContainsFunc(p.cursors, (*cursor).short)
}

// hasQueued reports whether there is something to take.
func (p *peer) hasQueued() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.isEmpty()
}

// isLoss tells a connection that was lost from one that this side gave up.
func isLoss(reason error) bool {
	return !slices.ContainsFunc([]error{errRefused, errAborted, errBadLocal, errOutdated, errOvertaken, errIdle}, func(other error) bool {
		return errors.Is(reason, other)
	})
}

// leave takes a carrier that has ended off the list, with the pieces that were in flight on it.
func (p *peer) leave(c carrier, held []piece, reason error) {
	p.mu.Lock()
	p.drop(c)
	p.overtaken = slices.DeleteFunc(p.overtaken, func(other carrier) bool { return other == c })
	lost := isLoss(reason)
	if lost {
		p.unconfirmed = true
		p.segment.MarkUnverified()
	}
	if len(held) > 0 {
		p.errors.Add(1)
	}
	for _, h := range held {
		p.giveBack(h, reason, lost)
	}
	if lost && (len(held) > 0 || !p.isEmpty()) && p.lostTooMany(reason) {
		p.failQueue(reason)
	}
	alone := len(p.listed()) == 0 && len(p.blocked) > 0 // nobody is there any more to find out whether the peer lives
	p.mu.Unlock()
	if alone {
		p.recheck()
		return
	}
	p.dispatch(false)
}

// lostTooMany counts a connection that was lost while there was work for it, and reports whether the queue is to be
// given up: so many were lost since the last piece was settled, or it stands still. The lock is held.
func (p *peer) lostTooMany(reason error) bool {
	if settled := p.bytesOut.Load() + p.bytesIn.Load(); settled != p.settled {
		p.settled, p.lossesInARow = settled, 0
		return false
	}
	p.lossesInARow++
	config := p.client.Config
	return p.lossesInARow > config.RetryCount*config.LanesPerPeer || errors.Is(reason, errStalled)
}

// list sets the carriers. The lock is held.
func (p *peer) list(carriers []carrier) { p.carriers.Store(&carriers) }

// listed is the carriers, also for who goes without the lock. The list itself never changes.
func (p *peer) listed() []carrier {
	if carriers := p.carriers.Load(); carriers != nil {
		return *carriers
	}
	return nil
}

func (p *peer) drop(c carrier) {
	p.list(slices.DeleteFunc(slices.Clone(p.listed()), func(other carrier) bool { return other == c }))
}

// stalled is why a carrier gives up on which nothing has moved for so long.
func (p *peer) stalled(oldest *piece, limit limit) error {
	return status.Errorf(status.Socket, "segment %q: %w for %v while %d bytes at %#x were in flight",
		p.segment.Name, errStalled, limit, oldest.length, oldest.remote)
}

// giveBack queues a piece again that was in flight when its carrier ended, or fails it. The lock is held.
func (p *peer) giveBack(h piece, reason error, lost bool) {
	if lost {
		h.breaks++
	}
	switch cause := h.work.Aborted(); {
	case cause != nil:
		h.settle(cause)
	case h.fatal != nil && h.merged && !errors.Is(h.fatal, errStalled):
		h.split(p.requeue) // one of its tasks is to blame: each is tried by itself
	case h.fatal != nil:
		h.settle(h.fatal)
	case p.closed != nil:
		h.settle(p.closed)
	case int(h.breaks) > p.client.Config.RetryCount:
		h.settle(fmt.Errorf("%w (after %d tries)", reason, h.breaks))
	case h.refusals > 0 && errors.Is(reason, errRefused):
		p.revalidate(h)
	default:
		p.requeue(h)
	}
}

// requeue has a piece sent again. The lock is held.
func (p *peer) requeue(h piece) {
	h.fatal, h.byAddress = nil, false
	p.returned = append(p.returned, h)
	p.queued += h.length
}

// unreachable takes a carrier off the list that could not connect, with what it held. When it was the last one, all
// that is queued fails. A connection that was made and reset before that was noticed is a lost one.
func (p *peer) unreachable(c carrier, held []piece, reason error) {
	if !isLoss(reason) || errors.Is(reason, syscall.ECONNRESET) {
		p.leave(c, held, reason)
		return
	}
	p.mu.Lock()
	p.drop(c)
	p.errors.Add(1)
	for _, h := range held {
		p.giveBack(h, reason, true)
	}
	if len(p.listed()) == 0 {
		p.failQueue(reason)
	}
	p.mu.Unlock()
}

// failQueue settles everything that is queued, or set aside until it may be. The lock is held.
func (p *peer) failQueue(reason error) {
	for _, c := range p.cursors {
		c.settleRest(cmp.Or(c.work.Aborted(), reason))
	}
	for _, h := range append(p.returned, p.blocked...) {
		h.settle(cmp.Or(h.work.Aborted(), reason))
	}
	p.cursors, p.returned, p.blocked, p.queued = nil, nil, nil, 0
}

// judgeStatus looks at the status frame that answers a piece: an error means that the connection is of no more use.
func (p *peer) judgeStatus(frame []byte, h *piece) error {
	code, err := wire.ParseStatus(frame)
	switch {
	case err != nil:
		return status.Errorf(status.Socket, "segment %q: %w", p.segment.Name, err)
	case code == wire.StatusOK:
		return nil
	case code == wire.StatusOutOfReach && h.byAddress:
		h.plain = true
		return nil
	case code == wire.StatusFailed:
		h.fatal = status.Errorf(status.Endpoint, "segment %q: the peer could not move %d bytes to or from its device at %#x; its log tells why",
			p.segment.Name, h.length, h.remote)
	case code == wire.StatusInaccessible:
		h.fatal = status.Errorf(status.AddressNotRegistered,
			"segment %q: the peer has registered memory %#x+%d, but cannot access it: it was unmapped or protected, or its file cut short",
			p.segment.Name, h.remote, h.length)
	case code != wire.StatusRejected:
		h.fatal = status.Errorf(status.Endpoint, "segment %q: the peer failed with code %d at %#x+%d",
			p.segment.Name, code, h.remote, h.length)
	}
	h.refusals++
	return errRefused
}

// count adds a settled piece to the figures.
func (p *peer) count(h *piece) {
	if h.op == core.Write {
		p.bytesOut.Add(h.length)
	} else {
		p.bytesIn.Add(h.length)
	}
}

// assist has the calling goroutine look for answers until done reports true, for at most assistTime.
func (p *peer) assist(done func() bool) {
	var eased []carrier
	found := func() bool {
		for _, c := range p.listed() {
			if load := c.load(); load == 0 || load > ladenBytes || c.waitsForPage() { // what takes long keeps a thread that takes part in it
				continue
			}
			if !slices.Contains(eased, c) {
				eased = append(eased, c)
				c.setSpinning(true)
			}
			c.assist()
			if done() {
				return true
			}
		}
		return done()
	}
	if p.answers.Polling > 0 && !p.isShort() {
		p.answers.SpinBriefly(spinTime, found)
	} else {
		p.answers.Spin(spinTime, found)
	}
	for _, c := range eased {
		c.setSpinning(false)
	}
}

// abort settles what is queued of aborted works, and ends the carriers that hold pieces of them.
func (p *peer) abort() {
	p.mu.Lock()
	carriers := append(slices.Clone(p.listed()), p.overtaken...)
	p.cursors = slices.DeleteFunc(p.cursors, func(c *cursor) bool {
		err := c.work.Aborted()
		if err != nil {
			p.queued -= c.left
			c.settleRest(err)
		}
		return err != nil
	})
	var settled uint64
	p.returned, settled = settleAborted(p.returned)
	p.queued -= settled
	p.unverified, _ = settleAborted(p.unverified)
	p.blocked, _ = settleAborted(p.blocked)
	p.mu.Unlock()
	for _, c := range carriers {
		if c.carriesAborted() {
			c.quit(errAborted)
		}
	}
}

// close fails everything that the peer holds or gets from now on.
func (p *peer) close(reason error) {
	p.mu.Lock()
	p.closed = reason
	p.failQueue(reason)
	for _, h := range p.unverified {
		h.settle(cmp.Or(h.work.Aborted(), reason))
	}
	p.unverified = nil
	carriers := append(slices.Clone(p.listed()), p.overtaken...)
	p.mu.Unlock()
	for _, c := range carriers {
		c.quit(reason)
	}
}

func (p *peer) link() core.Link {
	return core.Link{
		Peer: p.segment.Name, Transport: "tcp", Direction: "initiator", Connections: len(p.listed()),
		BytesOut: p.bytesOut.Load(), BytesIn: p.bytesIn.Load(), Errors: p.errors.Load(),
	}
}
