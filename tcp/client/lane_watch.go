package client

import "time"

// watchInterval is how often the watchdog looks. It sees a stall at most a quarter of the time-out late.
func (l *lane) watchInterval() time.Duration {
	return answerLimit(l.config).after / 4
}

// watch is the watchdog. While something is in flight, it ends a lane on which nothing moves.
func (l *lane) watch() {
	l.mu.Lock()
	if l.flight.len() == 0 || l.broken != nil {
		l.watching = false
		l.mu.Unlock()
		return
	}
	now, moved := time.Now(), l.moved.Load()
	if moved != l.lastMoved {
		l.lastMoved, l.movedAt = moved, now
	}
	limit := answerLimit(l.config)
	if l.sent < l.laidOut {
		limit = progressLimit(l.config)
	}
	oldest := *l.flight.at(0)
	stalled := now.Sub(l.movedAt) >= limit.after
	l.watchdog.Reset(l.watchInterval())
	l.mu.Unlock()
	if stalled {
		l.quit(stalledError(l.segment.Name, &oldest, limit))
	}
}
