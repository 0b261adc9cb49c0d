package client

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"kvferry/core"
	"kvferry/core/status"
)

// A system call of a lane that touches memory may wait for a page for ever: for one of the caller, whose memory may be a file
// on a server that is gone, or for one of another process on this host. Neither other transfers to the same peer nor the
// goroutine that gives this transfer up may wait with it:
//
//  1. overtakable makes a system call that may wait for a page. When the call takes long, the lane is overtaken: it takes
//     nothing more, and other lanes do instead. It ends when the call has returned. Until then they leave the rest of the works
//     that it waits for in the queue (peer.heldUp), and few of them wait for further pages (cautious.go).
//  2. quit, which ends a lane, sets a timer.
//  3. When the timer fires before the lane is retired, giveUpStuck has the local memory of all its pieces held (fence.go), so
//     that taking it back fails and says why. Then it fails the pieces. Other lanes go on.
//  4. When the system call returns, its goroutine finds the lane given up, and settles nothing. endStuck lets the memory go.

// slowTime is how long a system call of a lane may take before others overtake it.
const slowTime = 100 * time.Millisecond

// errOvertaken ends a lane that was overtaken.
var errOvertaken = errors.New("a system call took so long that other connections have taken over")

// overtakable makes a system call. slow says that the call may have to wait for a page.
func (l *lane) overtakable(slow bool, call func()) {
	if !slow {
		call()
		return
	}
	overtake := time.AfterFunc(slowTime, func() { l.source.overtake(l, false) })
	call()
	if !overtake.Stop() {
		l.quit(errOvertaken)
	}
}

// waitsFor: see pipelined. What was sent, and is no READ whose memory has to be brought in, waits for nothing.
func (l *lane) waitsFor() (works []*core.Work) {
	l.mu.Lock()
	defer l.mu.Unlock()
	add := func(p *piece) {
		if !slices.Contains(works, p.work) {
			works = append(works, p.work)
		}
	}
	for i := range l.flight.len() {
		if p := l.flight.at(i); p.cold || p.end > l.sent {
			add(p)
		}
	}
	for i := range l.copying {
		add(&l.copying[i])
	}
	return works
}

// stuckTimeout is how long a lane may take to end. A copy takes a millisecond at most, and longer only where the process is stopped
// or gets no processor: that time does not count (clock.Steps).
const stuckTimeout = 2 * time.Second

// giveUpStuck settles everything that the lane carries, because its goroutines do not end.
func (l *lane) giveUpStuck() {
	l.mu.Lock()
	if l.retired {
		l.mu.Unlock()
		return
	}
	held, unanswered := l.empty()
	held = append(append(held, l.inHand...), l.copying...)
	l.inHand, l.copying = nil, nil
	l.stuck = l.fence.holdStuck(l.conn, held)
	l.givenUp = make(chan struct{})
	defer close(l.givenUp)
	reason := l.broken
	l.mu.Unlock()
	l.sending.Broadcast()
	l.stuck.quarantine(unanswered)
	l.stuck.warn(held)
	for i := range held {
		why := cmp.Or(held[i].work.Aborted(), reason)
		held[i].settle(status.Errorf(status.Socket, "segment %q: %w: %w", l.segment.Name, why, errStillUsed))
	}
	l.source.ended(l, ending{reason: reason})
}

// endStuck ends the connection of a lane that was given up, when its system call has returned.
func (l *lane) endStuck(reason error) {
	<-l.givenUp // takes no longer than revokeTimeout
	l.stuck.returned(reason)
}
