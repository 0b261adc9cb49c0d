package server

import (
	"cmp"
	"fmt"
	"time"
)

// watchTicks is how often in a timeout the sessions are looked at.
const watchTicks = 4

// maxSlowTime is the longest time over which the rate of a session is measured: some retransmissions of lost packets.
const maxSlowTime = 5 * time.Second

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
		v.timer.Reset(min(v.options.ProgressTimeout, v.options.FirstRequest, v.slowTime()) / watchTicks)
	}
}

// check ends the sessions that have been silent, or have been waiting without progress, for too long, and those that are too slow
// to have staging memory.
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
			}
		}
		if !s.waiting.Load() && !s.sending.Load() {
			s.stalledSince = time.Time{}
			if !s.receives.queued.Load() && !s.sends.queued.Load() { // a peer that sends a byte now and then is as slow while its session waits for a place
				s.slowSince = time.Time{}
			}
			continue
		}
		v.setTimer()
		if err := cmp.Or(v.stalled(s, now), v.slow(s, now)); err != nil {
			s.end(err)
		}
	}
}

// stalled is why a session ends that waits for its peer, or nil.
func (v *Server) stalled(s *session, now time.Time) error {
	progress := s.progress.Load()
	if s.stalledSince.IsZero() || progress != s.stalledAt {
		s.stalledSince, s.stalledAt = now, progress
	} else if now.Sub(s.stalledSince) >= v.options.ProgressTimeout {
		return fmt.Errorf("no byte moved for %v (MC_TCP_PROGRESS_TIMEOUT_SEC)", v.options.ProgressTimeout)
	}
	return nil
}

// slow is why a session ends that waits for its peer and holds staging memory, or nil. A peer that takes or sends a byte now and
// then would keep the memory from all others. While nobody else waits for the memory, a peer may be as slow as it likes.
func (v *Server) slow(s *session, now time.Time) error {
	progress := s.progress.Load()
	took, moved := now.Sub(s.slowSince), progress-s.slowAt
	switch {
	case s.slowSince.IsZero():
	case took < v.slowTime():
		return nil
	case float64(moved) < float64(v.options.StagingRate)*took.Seconds() && s.holdsWanted():
		return fmt.Errorf("%d bytes moved in %v, while others wait for the staging memory that it holds (KVFERRY_STAGING_MIN_RATE is %d bytes per second)",
			moved, took.Round(time.Millisecond), v.options.StagingRate)
	}
	s.slowSince, s.slowAt = now, progress
	return nil
}

// slowTime is over how long the rate of a session is measured. Those that wait for its memory must not time out meanwhile.
func (v *Server) slowTime() time.Duration { return min(maxSlowTime, v.options.ProgressTimeout/2) }
