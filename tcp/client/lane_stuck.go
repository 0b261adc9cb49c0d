package client

import (
	"cmp"
	"errors"
	"time"

	"kvferry/core"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// A system call of a lane that touches memory may wait for a page for ever: of the caller, whose memory is a file on a
// server that is gone, or of a process on this host. Neither other transfers to the same peer nor whoever gives this one up
// wait with it:
//
//  1. overtakable makes a system call that may wait for a page. When that takes long, the lane is set aside: it takes
//     nothing more, and other lanes do instead. It ends when the call has returned.
//  2. quit, which ends a lane, sets a timer.
//  3. giveUpStuck finds the lane not retired when the timer is over. It has the local memory of all that the lane carries
//     held, so that taking it back fails and says why, and fails the pieces. Other lanes go on.
//  4. When the system call returns, its goroutine finds the lane given up, and settles nothing. The memory is let go.

// slowTime is how long a system call of a lane may take before others overtake it.
const slowTime = 100 * time.Millisecond

// errOvertaken ends a lane that was set aside.
var errOvertaken = errors.New("a system call took so long that other connections have taken over")

// overtakable makes a system call. slow says that it may have to wait for a page.
func (l *lane) overtakable(slow bool, call func()) {
	if !slow {
		call()
		return
	}
	overtake := time.AfterFunc(slowTime, func() { l.source.overtake(l) })
	call()
	if !overtake.Stop() {
		l.quit(errOvertaken)
	}
}

// stuckTime is how long a lane may take to end. A copy takes a millisecond at most.
const stuckTimeout = 2 * time.Second

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
	l.stuck = l.source.holdStuck(l.conn, held)
	l.givenUp = make(chan struct{})
	defer close(l.givenUp)
	reason := l.broken
	l.mu.Unlock()
	l.sending.Broadcast()
	l.stuck.withdraw(unanswered)
	l.warnStuck(held)
	for i := range held {
		why := cmp.Or(held[i].work.Aborted(), reason)
		held[i].settle(status.Errorf(status.Socket, "segment %q: %w: %w", l.segment.Name, why, errStillUsed))
	}
	l.source.ended(l, ending{reason: reason})
}

// warnStuck tells which memory is not to be used for something else: a call that waits with a time-out of its own has no
// other way to learn it.
func (l *lane) warnStuck(held []piece) {
	const most = 8
	var ranges []string
	for i := range held[:min(len(held), most)] {
		ranges = append(ranges, core.Range{Addr: held[i].local, Length: held[i].length}.String())
	}
	l.fence.log.Error("transfers were given up, but their memory may still be used until a page comes that a system call waits for",
		zap.String("segment", l.segment.Name), zap.Int("ranges", len(held)), zap.Strings("first", ranges))
}

// endStuck ends the connection of a lane that was given up, when its system call has returned.
func (l *lane) endStuck(reason error) {
	<-l.givenUp // takes no longer than revokeTimeout
	l.stuck.returned(reason)
}
