package staging

import "math"

// Recovers reports whether a job of the direction has failed and its stream is being brought to rest.
func (d *Device) Recovers(dir Direction) bool {
	c := d.copiers[dir]
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recovering
}

// Measures reports whether a measurement of the direction is under way.
func (d *Device) Measures(dir Direction) bool {
	c := d.copiers[dir]
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calibrating
}

// InFlight is how many jobs of a direction were issued and not completed.
func (d *Device) InFlight(dir Direction) int {
	c := d.copiers[dir]
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flight.len()
}

// LetThreadsLinger has the threads of copiers made from now on look out for jobs and sleep as with many processors, or as with few.
// It returns a function that undoes this.
func LetThreadsLinger(many bool) (undo func()) {
	before := manyProcessors
	manyProcessors = 1
	if !many {
		manyProcessors = math.MaxInt
	}
	return func() { manyProcessors = before }
}

// PrepareDirectSoon is PrepareDirect, and does not wait.
func (d *Device) PrepareDirectSoon(from []*Device) (ready <-chan struct{}) {
	return d.prepareDirectSoon(from)
}
