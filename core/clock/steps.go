package clock

import (
	"sync"
	"time"
)

// steps is how many steps a Steps counts.
const steps = 20

// Steps calls a function after a time, which it counts in steps. Each step begins when the one before was noticed. So while the
// process is stopped, or gets no processor, one step passes at most: what else the process does comes no further meanwhile.
type Steps struct {
	mu    sync.Mutex
	timer *time.Timer
	step  time.Duration
	left  int // steps; 0 when it is over
	f     func()
}

// AfterSteps begins to count. f is called on a goroutine of its own, once.
func AfterSteps(limit time.Duration, f func()) *Steps {
	s := &Steps{step: limit / steps, left: steps, f: f}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(s.step, s.pass)
	return s
}

// pass counts a step.
func (s *Steps) pass() {
	s.mu.Lock()
	if s.left--; s.left > 0 {
		s.timer.Reset(s.step)
	}
	over := s.left == 0
	s.mu.Unlock()
	if over {
		s.f()
	}
}

// Stop ends the count. f may be running.
func (s *Steps) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = 0
	s.timer.Stop()
}
