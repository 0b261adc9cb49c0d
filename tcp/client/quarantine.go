package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"kvferry/core"
	"kvferry/core/clock"
	"kvferry/core/metadata"
	"kvferry/core/status"
	"kvferry/tcp/sockio"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Bytes of a WRITE that was in flight on a connection that ended may still be applied by the target. They must not land
// after a later WRITE to the same place was acknowledged:
//
//  1. withdraw ends a connection on this side. The ranges of the WRITEs in flight on it, of which something was sent and
//     nothing was acknowledged, go into the quarantine of the target.
//  2. take, and a one-shot carrier when it is connected, ask the quarantine about each WRITE. One that overlaps a range is
//     set aside (block) until the range is free.
//  3. An engine with an identity is asked by the hello of a new connection whether the session of the old one has ended
//     (fence). That is done when the answer comes, or when another incarnation of the engine answers.
//  4. Mooncake's targets are not asked. Where the old connection is whole, its sending side is closed, and it is read to
//     its end, which comes when the target has applied or dropped all (linger). Where the connection was reset, nobody can
//     know: WRITEs to the ranges fail from then on, but for the ones that repeat what was in flight. That lasts until the
//     target is another process, on another port.
//  5. release frees the ranges, and has the WRITEs that were set aside queued again.

const (
	// maxRanges bounds the ranges of a quarantine. With more of them, those that nobody can know about become one.
	maxRanges = 8192
	// maxLingering bounds the connections that an engine reads to their ends.
	maxLingering = 64
	// The pauses between two hellos that ask for the end of one connection: doubled each time, within these limits.
	minFencePause = 5 * time.Millisecond
	maxFencePause = 5 * time.Second
)

// quarantines are those of all targets of an engine.
type quarantines struct {
	busy      atomic.Int64 // ranges in all of them: nothing is asked while there are none
	lingering atomic.Int64

	mu       sync.Mutex
	byTarget map[string]*quarantine
}

// quarantine is the ranges of one target that a WRITE may have to wait for. It is under the lock of quarantines.
type quarantine struct{ ranges []heldRange }

// suspectRange is a range that bytes may still land in.
type heldRange struct {
	low, high uint64 // the latter is not in it
	work      weak.Pointer[core.Work]
	end       *connectionEnd
}

// connectionEnd is the end of a connection at its target.
type connectionEnd struct {
	target  string // as targetKey names it
	where   string // the connection, for an error
	unknown bool   // nobody will ever know whether it has come; under the lock of quarantines
}

// targetKey names a target: by its identity, or by the address of its data port, which is the one that its descriptor gives
// whatever other address it was reached by.
func targetKey(d *metadata.Descriptor, remote string) string {
	switch {
	case d.Identity != "":
		return d.Identity
	case d.DataHost != "":
		return net.JoinHostPort(d.DataHost, strconv.Itoa(d.DataPort))
	}
	return remote
}

// add puts the ranges of WRITEs that were in flight on one connection into the quarantine of its target.
func (q *quarantines) add(writes []piece, end *connectionEnd) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.byTarget == nil {
		q.byTarget = map[string]*quarantine{}
	}
	t := q.byTarget[end.target]
	if t == nil {
		t = &quarantine{}
		q.byTarget[end.target] = t
	}
	before := len(t.ranges)
	for i := range writes {
		w := &writes[i]
		t.ranges = append(t.ranges, heldRange{low: w.remote, high: w.remote + w.length, work: weak.Make(w.work), end: end})
	}
	if len(t.ranges) > maxRanges {
		t.merge()
	}
	q.busy.Add(int64(len(t.ranges) - before))
}

// merge makes one range of those that nobody can know about.
func (t *quarantine) merge() {
	var all heldRange
	t.ranges = slices.DeleteFunc(t.ranges, func(r heldRange) bool {
		if r.end.unknown {
			if all.end == nil {
				all = heldRange{low: r.low, end: r.end}
			}
			all.low, all.high = min(all.low, r.low), max(all.high, r.high)
		}
		return r.end.unknown
	})
	if all.end != nil {
		t.ranges = append(t.ranges, all)
	}
}

// release frees the ranges of a connection that is over at its target.
func (q *quarantines) release(end *connectionEnd) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.byTarget[end.target]
	if t == nil {
		return
	}
	before := len(t.ranges)
	t.ranges = slices.DeleteFunc(t.ranges, func(r heldRange) bool { return r.end == end })
	q.busy.Add(int64(len(t.ranges) - before))
	if len(t.ranges) == 0 {
		delete(q.byTarget, end.target)
	}
}

// giveUp says that the end of a connection will never be known.
func (q *quarantines) giveUp(end *connectionEnd) {
	q.mu.Lock()
	defer q.mu.Unlock()
	end.unknown = true
}

// errFormerWrite is why a WRITE is not sent.
var errFormerWrite = errors.New("an earlier WRITE to the same place was in flight on a connection that ended, and may still be applied by the target")

// check returns nil for a WRITE that may be sent to a target, and otherwise the end that it has to wait for. lost says that
// there is no use in waiting.
func (q *quarantines) check(target string, p *piece) (end *connectionEnd, lost bool) {
	if q.busy.Load() == 0 || p.op != core.Write {
		return nil, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.byTarget[target]
	if t == nil {
		return nil, false
	}
	same := weak.Make(p.work)
	for _, r := range t.ranges {
		if p.remote >= r.high || r.low >= p.remote+p.length {
			continue
		}
		if r.end.unknown && r.work == same { // the same bytes
			continue
		}
		end, lost = r.end, lost || r.end.unknown
	}
	return end, lost
}

// mayGo reports whether a piece may be sent to a target. One that may not is set aside, or fails. The peer's lock is held.
func (p *peer) mayGo(target string, h *piece) bool {
	end, lost := p.client.quarantines.check(target, h)
	if end == nil {
		h.blocked = 0
		return true
	}
	now := int64(clock.Now())
	if h.blocked == 0 {
		h.blocked = now
	}
	limit := p.client.Config.StatusTimeout
	switch waited := time.Duration(now - h.blocked); {
	case lost:
		h.settle(p.blockedError(h, "nobody can know when: the connection "+end.where+" was reset, and the target is none that can be asked"))
	case waited >= limit:
		h.settle(p.blockedError(h, fmt.Sprintf("the target has not ended the connection %s within %v (MC_TCP_STATUS_TIMEOUT_SEC)", end.where, limit)))
	default:
		p.blocked = append(p.blocked, *h)
		p.recheckSoon(limit - waited)
	}
	return false
}

func (p *peer) blockedError(h *piece, why string) error {
	return status.Errorf(status.Socket, "segment %q: WRITE of %d bytes at %#x not sent: %w; %s", p.segment.Name, h.length, h.remote,
		errFormerWrite, why)
}

// recheckSoon has the pieces that are set aside looked at again when the first of them has waited for long enough. The lock
// is held.
func (p *peer) recheckSoon(wait time.Duration) {
	if p.rechecking {
		return
	}
	p.rechecking = true
	time.AfterFunc(wait, p.recheck)
}

// recheck queues the pieces again that were set aside.
func (p *peer) recheck() {
	p.mu.Lock()
	p.rechecking = false
	blocked := p.blocked
	p.blocked = nil
	for _, h := range blocked {
		if p.closed != nil {
			h.settle(cmp.Or(h.work.Aborted(), p.closed))
			continue
		}
		p.requeue(h)
	}
	p.mu.Unlock()
	if len(blocked) > 0 {
		p.dispatch(false)
	}
}

// withdraw ends a connection on this side, before anything that was in flight on it is settled or sent again. unanswered
// are the WRITEs of which something was sent, and reason is why the connection ends.
func (p *peer) withdraw(conn *connection, d *metadata.Descriptor, unanswered []piece, reason error) {
	revoked := p.revoke(conn, unanswered)
	if len(unanswered) == 0 || conn.number == 0 && isEnd(reason) {
		p.discard(conn)
		return
	}
	end := p.suspectWrites(conn, d, unanswered)
	if conn.number == 0 {
		p.learnEnd(conn, end, reason)
		return
	}
	conn.Reset()
	if revoked {
		conn.release()
	}
	p.client.running.Go(func() { p.fence(conn.number, d, end) })
}

// suspectWrites puts WRITEs that were in flight on a connection into the quarantine of its target.
func (p *peer) suspectWrites(conn *connection, d *metadata.Descriptor, unanswered []piece) *connectionEnd {
	end := &connectionEnd{target: targetKey(d, conn.Remote.String()), where: fmt.Sprintf("to %v", conn.Remote)}
	p.client.quarantines.add(unanswered, end)
	return end
}

// learnEnd finds out when the target has ended a connection without a hello, and takes the connection over.
func (p *peer) learnEnd(conn *connection, end *connectionEnd, reason error) {
	quarantines := &p.client.quarantines
	if !isReset(reason) {
		if quarantines.lingering.Add(1) <= maxLingering {
			p.client.running.Go(func() { p.lingerUntilPeerDone(conn, end) })
			return
		}
		quarantines.lingering.Add(-1)
	}
	quarantines.giveUp(end)
	p.discard(conn)
}

// discard closes a connection. What the kernel still has of it is not to arrive.
func (p *peer) discard(conn *connection) {
	conn.Reset()
	conn.release()
}

// isEnd reports whether the target of a connection has ended it: it has said so in good order, and serves nothing more that
// came over it.
func isEnd(reason error) bool {
	return errors.Is(reason, errRefused) || errors.Is(reason, errPeerClosed) || errors.Is(reason, errRetired)
}

// isReset reports whether a connection is lost, so that the end of its session at the target cannot be seen.
func isReset(reason error) bool {
	return isLoss(reason) && !errors.Is(reason, errStalled) && !errors.Is(reason, core.ErrClosed)
}

// fence asks the engine of a descriptor for the end of a former connection until it is known to be over: the engine says
// so, or is gone for good.
func (p *peer) fence(number uint64, d *metadata.Descriptor, end *connectionEnd) {
	ctx := p.client.ctx
	for pause := minFencePause; ; pause = min(2*pause, maxFencePause) {
		conn, err := p.dialData(ctx, d, number)
		if err == nil {
			p.discard(conn)
			break
		}
		if p.replaced(ctx, d) {
			break
		}
		p.client.Log.Debug("a former connection is not known to be over", zap.Uint64("connection", number), zap.Error(err))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
	p.free(end)
}

// replaced reports whether the engine of a descriptor is gone, since another incarnation answers in its place.
func (p *peer) replaced(ctx context.Context, d *metadata.Descriptor) bool {
	now, err := p.refresh(ctx, p.segment.Descriptor())
	return err == nil && now.Identity != d.Identity
}

// linger reads a connection to its end.
func (p *peer) lingerUntilPeerDone(conn *connection, end *connectionEnd) {
	defer p.client.quarantines.lingering.Add(-1)
	_ = conn.SetDeadline(time.Time{}) // before the next line: the transport may be closed already
	stop := context.AfterFunc(p.client.ctx, func() { _ = conn.SetDeadline(sockio.Past) })
	defer stop()
	err := conn.CloseWrite()
	if errors.Is(err, unix.ENOTCONN) { // the peer has ended it already: reading tells how
		err = nil
	}
	for scratch := make([]byte, 32<<10); err == nil; {
		err = conn.Discard(scratch, len(scratch))
	}
	p.discard(conn)
	if errors.Is(err, io.EOF) {
		p.free(end)
	} else {
		p.client.quarantines.giveUp(end)
		p.recheckAll()
	}
}

// free releases the ranges of a connection that is over.
func (p *peer) free(end *connectionEnd) {
	p.client.quarantines.release(end)
	p.recheckAll()
}

// recheckAll is recheck for all peers: a target may be known by several names.
func (p *peer) recheckAll() {
	p.recheck()
	for _, other := range p.client.allPeers() {
		if other != p {
			other.recheck()
		}
	}
}
