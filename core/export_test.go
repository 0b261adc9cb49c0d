package core

import (
	"time"

	"kvferry/core/address"
	"kvferry/core/metadata"
)

// Start is New with a store of the test's. Names are those of P2P mode unless Metadata says otherwise.
func Start(o Options, store metadata.Store) (*Engine, error) {
	if o.Metadata == "" {
		o.Metadata = metadata.P2P
	}
	name, err := address.Parse(o.Name, o.Config.HandshakePort)
	if err != nil {
		return nil, err
	}
	self, err := newSelf(o)
	if err != nil {
		return nil, err
	}
	return start(o, name, self, store)
}

// SetGrace sets how long memory that is unregistered is waited for.
func (e *Engine) SetGrace(d time.Duration) { e.grace = d }

// SetEnding sets how long a transfer that was given up may take to end before it counts as stuck.
func (e *Engine) SetEnding(d time.Duration) { e.ending = d }

// SegmentNamed opens a segment and returns it, not its id.
func (e *Engine) SegmentNamed(name string) (*Segment, error) {
	id, err := e.OpenSegment(name)
	if err != nil {
		return nil, err
	}
	return e.segment(id)
}

// Age makes a batch older.
func (b *Batch) Age(by time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.began -= by
	if b.movement.since != 0 {
		b.movement.since -= by
	}
}

// PassTime has the time of an offer be over now.
func (o *Offer) PassTime() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timer.Reset(0)
}

// HasTimer reports whether a timer will end the offer.
func (o *Offer) HasTimer() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.timer != nil && o.timer.Stop()
}
