package server

import (
	"fmt"
	"time"
)

// watchTicks is how often in a timeout the sessions are looked at.
const watchTicks = 4

// watch has stalled sessions ended. The timer runs only while a session waits for its peer in the middle of something, or for
// its first request. It is not set again for each wait.
func (v *Server) watch() {
	if v.watching.Load() {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.setTimer()
}

func (v *Server) setTimer() {
	if !v.closed && v.watching.CompareAndSwap(false, true) {
		v.timer.Reset(min(v.options.ProgressTimeout, v.options.FirstRequest) / watchTicks)
	}
}

// check ends the sessions that have been silent, or have been waiting without progress, for too long.
func (v *Server) check() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.watching.Store(false) // before it looks: a session that starts to wait after that sets the timer itself
	now := time.Now()
	for s := range v.sessions {
		if s.silent.Load() {
			v.setTimer()
			if now.Sub(s.began) >= v.options.FirstRequest {
				s.end(fmt.Errorf("no valid request within %v (KVFERRY_FIRST_REQUEST_TIMEOUT_SEC)", v.options.FirstRequest))
				continue
			}
		}
		if !s.waiting.Load() && !s.sending.Load() {
			s.stalledSince = time.Time{}
			continue
		}
		v.setTimer()
		progress := s.progress.Load()
		if s.stalledSince.IsZero() || progress != s.stalledAt {
			s.stalledSince, s.stalledAt = now, progress
		} else if now.Sub(s.stalledSince) >= v.options.ProgressTimeout {
			s.end(fmt.Errorf("no byte moved for %v (MC_TCP_PROGRESS_TIMEOUT_SEC)", v.options.ProgressTimeout))
		}
	}
}
