package tcp

import (
	"errors"
	"time"

	"kvferry/core/status"
)

// A system call of a lane that touches memory may wait for a page for ever: of the caller, whose memory is a file on a
// server that is gone, or of a process on this host. A transfer that is given up does not wait with it:
//
//  1. quit, which ends the lane, sets a timer.
//  2. giveUpStuck finds the lane not retired when the timer is over. It has the local memory of all that the lane carries
//     held, so that taking it back fails and says why, and fails the pieces. Other lanes go on.
//  3. When the system call returns, its goroutine finds the lane given up, and settles nothing. The memory is let go.

// stuckTime is how long a lane may take to end. A copy takes a millisecond at most.
const stuckTime = 2 * time.Second

// errStillUsed is why the memory of a transfer that has failed must not be used for something else.
var errStillUsed = errors.New("a system call that was given up may still touch the local memory, until the page that it waits for comes")

// giveUpStuck settles all that a lane carries whose goroutines do not end.
func (l *lane) giveUpStuck() {
	l.mu.Lock()
	if l.retired {
		l.mu.Unlock()
		return
	}
	held, unanswered := l.empty()
	held = append(append(held, l.inHand...), l.copying...)
	l.inHand, l.copying = nil, nil
	l.letGo = l.peer.transport.hold(held, errStillUsed.Error())
	reason := l.broken
	l.mu.Unlock()
	l.sending.Broadcast()
	l.fenceStuck(unanswered)
	for i := range held {
		why := firstError(held[i].work.Aborted(), reason)
		held[i].settle(status.Errorf(status.Socket, "segment %q: %w: %w", l.peer.segment.Name, why, errStillUsed))
	}
	l.peer.leave(l, nil, reason)
}

// fenceStuck keeps the WRITEs that were in flight from overwriting later ones. The connection itself is still in use.
func (l *lane) fenceStuck(unanswered []piece) {
	if l.conn.permit != nil {
		l.conn.permit.revoke(revokePatience, func() bool { return !l.conn.process.lives() })
	}
	if len(unanswered) == 0 {
		return
	}
	l.stuckEnd = l.peer.suspectWrites(l.conn, l.owner, unanswered)
	if number := l.conn.number; number != 0 {
		l.peer.transport.running.Go(func() { l.peer.fence(number, l.owner, l.stuckEnd) })
	}
}

// endStuck ends the connection of a lane that was given up, when its system call has returned.
func (l *lane) endStuck(reason error) {
	if l.stuckEnd != nil && l.conn.number == 0 {
		l.peer.learnEnd(l.conn, l.stuckEnd, reason)
	} else {
		l.peer.discard(l.conn)
	}
	l.letGo()
}
