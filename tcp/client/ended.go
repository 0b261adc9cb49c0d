package client

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"kvferry/core"
	"kvferry/core/metrics"
)

// How a carrier ends, and what becomes of the pieces that were in flight on it:
//
//  1. ended ends the connection, takes the carrier off the list, and gives its pieces back.
//  2. giveBack queues a piece again, has it revalidated, or fails it.
//  3. With too many losses in a row the whole queue fails.

// The reason why a carrier ends says whether its connection was lost (isLoss), and what is known of the end of that connection at
// a target that cannot be asked (isEnd and isReset in formerend.go):
//
//	reason                                                lost   does the target still apply bytes?
//	errRefused                                            no     no
//	errRetired, errPeerClosed                             yes    no
//	errAborted, errBadLocal, errOutdated, errOvertaken    no     until the connection is read to its end
//	errRenewed                                            no     until the connection is read to its end
//	errStalled, core.ErrClosed                            yes    until the connection is read to its end
//	errIdle                                               no     nothing was in flight
//	any other, as a reset                                 yes    cannot be known

// isLoss distinguishes a connection that was lost from one that this side gave up.
func isLoss(reason error) bool {
	return !slices.ContainsFunc([]error{errRefused, errAborted, errBadLocal, errOutdated, errOvertaken, errIdle, errRenewed}, func(other error) bool {
		return errors.Is(reason, other)
	})
}

// ended: see source. The connection is ended first, so that nothing touches the memory of a piece any more that is settled.
func (p *peer) ended(c carrier, e ending) {
	if e.conn != nil {
		p.fence.endConnection(e.conn, e.unanswered, e.reason)
	}
	if _, isLane := c.(pipelined); isLane {
		e.held, _ = settleAborted(e.held)
	}
	if e.unreachable && isLoss(e.reason) && !errors.Is(e.reason, syscall.ECONNRESET) && !errors.Is(e.reason, syscall.EPIPE) {
		p.endUnreachable(c, e)
		return
	}
	p.mu.Lock()
	p.remove(c)
	p.overtaken = slices.DeleteFunc(p.overtaken, func(other carrier) bool { return other == c })
	delete(p.heldUp, c)
	lost := isLoss(e.reason)
	if lost {
		p.countLoss(e)
		p.unconfirmed = true
		p.segment.MarkUnverified()
	}
	if len(e.held) > 0 {
		p.errors.Add(1)
	}
	for _, piece := range e.held {
		p.giveBack(piece, e.reason, lost)
	}
	if lost && (len(e.held) > 0 || !p.isEmpty()) && p.lostTooMany(e.reason) {
		p.failQueue(e.reason)
	}
	alone := len(p.listed().all) == 0 && len(p.blocked) > 0 // no carrier is left to find out whether the peer lives
	p.mu.Unlock()
	if alone {
		p.recheck()
		return
	}
	p.dispatch(false)
}

// endUnreachable is ended for a carrier that could not connect. When it was the last one, all that is queued fails. A
// connection that was made, and ended by the target before the carrier noticed, counts as lost instead.
func (p *peer) endUnreachable(c carrier, e ending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(c)
	p.errors.Add(1)
	for _, piece := range e.held {
		p.giveBack(piece, e.reason, true)
	}
	if len(p.listed().all) == 0 {
		p.failQueue(e.reason)
	}
}

// remove takes a carrier off the list. The lock is held.
func (p *peer) remove(c carrier) {
	p.carriers.Store(p.listed().without(c))
	if p.touching == c {
		p.touching = nil
	}
	if p.touching == nil { // one more may be overtaken now
		p.lookAgain(len(p.aside))
	}
}

// overtake: see source. Only so many carriers that wait for a page are overtaken at a time, see cautious.go. A carrier that is
// renewed ends soon. The others take nothing of the works that c waits for: a transfer of many pieces would hold them up, too.
func (p *peer) overtake(c carrier, renewed bool) {
	var works []*core.Work
	if lane, isLane := c.(pipelined); isLane && !renewed {
		works = lane.waitsFor()
	}
	p.mu.Lock()
	if (renewed || p.mayBeOvertaken(c)) && slices.Contains(p.listed().all, c) {
		p.remove(c)
		p.overtaken = append(p.overtaken, c)
		p.holdUp(c, works)
	}
	p.mu.Unlock()
	p.dispatch(false)
}

// holdUp has nothing taken of works until a carrier has ended. The lock is held.
func (p *peer) holdUp(c carrier, works []*core.Work) {
	if len(works) == 0 {
		return
	}
	if p.heldUp == nil {
		p.heldUp = map[carrier][]*core.Work{}
	}
	p.heldUp[c] = works
}

// lostTooMany counts a connection that was lost while there was work for it. It reports whether the queue is to be given up:
// too many were lost since the last piece was settled, or nothing moved on this one. The lock is held.
func (p *peer) lostTooMany(reason error) bool {
	if settled := p.settled(); settled != p.settledThen {
		p.settledThen, p.lossesInARow = settled, 0
		return false
	}
	p.lossesInARow++
	return p.lossesInARow > p.config.RetryCount*p.config.LanesPerPeer || errors.Is(reason, errStalled)
}

// putBack: see source.
func (p *peer) putBack(pieces []piece) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, piece := range pieces {
		p.giveBack(piece, nil, false)
	}
}

// giveBack queues a piece again that was in flight when its carrier ended, or fails it. The lock is held.
func (p *peer) giveBack(piece piece, reason error, lost bool) {
	if lost {
		piece.breaks++
	}
	switch cause := piece.work.Aborted(); {
	case cause != nil:
		piece.settle(cause)
	case piece.fatal != nil && piece.merged && !errors.Is(piece.fatal, errStalled):
		piece.split(p.requeue) // one of its tasks is to blame: each is tried by itself
	case piece.fatal != nil:
		piece.settle(piece.fatal)
	case p.closed != nil:
		piece.settle(p.closed)
	case piece.work.Transfer != nil && piece.work.WillFail(piece.first):
		piece.settle(core.ErrPartFailed)
	case int(piece.breaks) > p.config.RetryCount:
		piece.settle(fmt.Errorf("%w (after %d tries)", reason, piece.breaks))
	case piece.refusals > 0 && errors.Is(reason, errRefused):
		p.revalidate(piece)
	default:
		if lost {
			p.Add(metrics.Retries, 1)
		}
		p.requeue(piece)
	}
}

// countLoss counts a connection that was lost, unless its end was to be expected.
func (p *peer) countLoss(e ending) {
	if e.conn != nil && !errors.Is(e.reason, errRetired) && !errors.Is(e.reason, core.ErrClosed) {
		p.Add(metrics.Lost, 1)
	}
}

// requeue has a piece sent again. The lock is held.
func (p *peer) requeue(piece piece) {
	piece.fatal, piece.byAddress = nil, false
	p.returned = append(p.returned, piece)
	p.queued += piece.length
}

// failQueue settles everything that is queued, or set aside until it may be. The lock is held.
func (p *peer) failQueue(reason error) {
	for _, a := range p.aside {
		p.unset(a)
	}
	for _, c := range p.cursors {
		c.settleRest(cmp.Or(c.work.Aborted(), reason))
	}
	for _, piece := range append(p.returned, p.blocked...) {
		piece.settle(cmp.Or(piece.work.Aborted(), reason))
	}
	p.cursors, p.returned, p.aside, p.again, p.blocked, p.queued = nil, nil, nil, 0, nil, 0
}
