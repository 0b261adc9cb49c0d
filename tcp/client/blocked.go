package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"kvferry/core/clock"
	"kvferry/core/metadata"
	"kvferry/core/status"
)

// WRITEs that wait for a former connection to be over; see fence:
//
//  1. mayGo asks the quarantine of the target about a WRITE. One that overlaps a range is blocked.
//  2. recheck queues the blocked WRITEs again: when a range is free, when the first of them has waited for long enough, and
//     when no carrier is left.

// mayGo reports whether a piece may be sent to a target. A piece that may not is blocked, or fails. The peer's lock is held.
func (p *peer) mayGo(target string, piece *piece) bool {
	end, unknown := p.fence.quarantines.check(target, piece)
	if end == nil {
		piece.blocked = 0
		return true
	}
	now := int64(clock.Now())
	if piece.blocked == 0 {
		piece.blocked = now
	}
	limit := p.config.StatusTimeout
	switch waited := time.Duration(now - piece.blocked); {
	case unknown:
		piece.settle(p.blockedError(piece, "nobody can know until when: the connection "+end.where+" has no orderly end, and the target is Mooncake, which cannot be asked"))
	case waited >= limit && piece.isRegular(): // between its runs there may be what it waits for
		piece.split(p.requeue)
	case waited >= limit:
		piece.settle(p.blockedError(piece, fmt.Sprintf("the target has not ended the connection %s within %v (MC_TCP_STATUS_TIMEOUT_SEC)", end.where, limit)))
	default:
		p.blocked = append(p.blocked, *piece)
		p.recheckSoon(limit - waited)
	}
	return false
}

// errFormerWrite is why a WRITE is not sent.
var errFormerWrite = errors.New("an earlier WRITE to the same place was in flight on a connection that ended, and may still be applied by the target")

func (p *peer) blockedError(piece *piece, why string) error {
	return status.Errorf(status.Socket, "segment %q: WRITE of %d bytes at %#x not sent: %w; %s",
		p.segment.Name, piece.length, piece.remote, errFormerWrite, why)
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
	for _, piece := range blocked {
		if p.closed != nil {
			piece.settle(cmp.Or(piece.work.Aborted(), p.closed))
			continue
		}
		p.requeue(piece)
	}
	p.mu.Unlock()
	if len(blocked) > 0 {
		p.dispatch(false)
	}
}

func (p *peer) name() string { return p.segment.Name }

// replaced reports whether the engine of a descriptor is gone, since another incarnation answers in its place.
func (p *peer) replaced(ctx context.Context, d *metadata.Descriptor) bool {
	now, err := p.refresh(ctx, p.segment.Descriptor())
	return err == nil && now.Identity != d.Identity
}
