package client

import (
	"slices"
	"time"

	"kvferry/core/clock"
)

const (
	// spinTime is how long a goroutine that waits for a short answer polls the sockets, instead of sleeping: longer than some
	// round trips in a rack, and than some wake-ups of a thread.
	spinTime = 150 * time.Microsecond
	// shortLoad is the most bytes, queued and in flight, whose answers are worth polling for all the time.
	shortLoad = 512 << 10
)

// assist has the calling goroutine receive answers until done returns true, for at most spinTime. It leaves out lanes with
// long work, which would keep it from returning.
func (p *peer) assist(done func() bool) {
	var spun []pipelined
	found := func() bool {
		for _, l := range p.listed().lanes {
			if load := l.load(); load == 0 || load > busyBytes || !l.mayBeAssisted() {
				continue
			}
			if !slices.Contains(spun, l) {
				spun = append(spun, l)
				l.setSpinning(true)
			}
			l.assist()
			if done() {
				return true
			}
		}
		return done()
	}
	if p.answers.Polling > 0 && !p.isShort() {
		p.answers.SpinBriefly(spinTime, found)
	} else {
		p.answers.Spin(spinTime, found, func(most time.Duration) bool {
			return slices.ContainsFunc(spun, func(l pipelined) bool { return l.load() > 0 && l.mayBeAssisted() && l.assistAsleep(most, done) })
		})
	}
	for _, l := range spun {
		l.setSpinning(false)
	}
}

// expect says that the calling goroutine is about to submit a request, and to assist. On contended processors the answer may come
// before it does: the peer's thread runs in place of the thread that sends. Then a thread would be woken that has nothing to do,
// so the lane that sends the request wakes nobody from before that until end is called.
func (p *peer) expect() (end func()) {
	if !p.answers.Contention.Holds(clock.Now()) {
		return endNothing
	}
	lanes := p.listed().lanes
	if i := slices.IndexFunc(lanes, pipelined.idle); i >= 0 {
		return lanes[i].expect()
	}
	return endNothing
}

func endNothing() {}

// isShort reports whether what is queued and in flight is short.
func (p *peer) isShort() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held() <= shortLoad
}
