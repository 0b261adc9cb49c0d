package driver

import (
	"sync"
	"time"

	"kvferry/core/device"
)

// Tables has what was measured on the devices of a library. It lives as long as the opened library: until the process ends.
type Tables struct {
	mu  sync.Mutex
	all map[int]*device.Tables
}

// Of returns those of a device.
func (t *Tables) Of(index int) *device.Tables {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[int]*device.Tables{}
	}
	if t.all[index] == nil {
		t.all[index] = new(device.Tables)
	}
	return t.all[index]
}

// Milliseconds turns the time that a library returns between two events into a duration: 0 for what is no time.
func Milliseconds(ms float32) time.Duration {
	const day = float32(24 * time.Hour / time.Millisecond)
	if !(ms > 0) {
		return 0
	}
	return time.Duration(float64(min(ms, day)) * float64(time.Millisecond))
}
