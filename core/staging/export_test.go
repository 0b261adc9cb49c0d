package staging

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
