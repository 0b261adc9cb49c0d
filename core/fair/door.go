package fair

import (
	"net/netip"
	"time"
)

// patienceShare is the part of all time that a door may spend on waiting, as a divisor.
const patienceShare = 20

// Door admits connections that one goroutine accepts, one unit each. A burst of connections from one address is admitted as
// its earlier ones end: the door waits for that, but not longer than its patience. This is spent once, and comes back slowly,
// so that connections that do nothing cannot hold up others. Admit belongs to the goroutine that accepts.
type Door struct {
	Gate *Gate

	freed    chan struct{} // has an element when a connection has left
	patience time.Duration // at most
	left     time.Duration // of the patience, at the time waited
	waited   time.Time
}

// NewDoor makes a door. Options.Grace is how long a connection has to send its request, before it may give way to a further
// one of its address that has not waited.
func NewDoor(o Options, patience time.Duration) *Door {
	return &Door{Gate: New(o), freed: make(chan struct{}, 1), patience: patience, left: patience, waited: time.Now()}
}

// Admit is Gate.Enter for a connection. It waits until it may enter, or the patience is over, or closed is closed; then the
// oldest connection of the address gives way. The error is a *Refusal.
func (d *Door) Admit(addr netip.Addr, evict func(), closed <-chan struct{}) (*Place, error) {
	place, err := d.Gate.Enter(addr, 1, evict)
	for err != nil && d.wait(closed) {
		place, err = d.Gate.Enter(addr, 1, evict)
	}
	if err != nil {
		return d.Gate.Insist(addr, 1, evict)
	}
	return place, nil
}

// wait returns true when a connection has left, and false when the patience is over or closed is closed.
func (d *Door) wait(closed <-chan struct{}) bool {
	begun := time.Now()
	d.left = min(d.left+begun.Sub(d.waited)/patienceShare, d.patience)
	timer := time.NewTimer(d.left)
	defer timer.Stop()
	defer func() {
		d.waited = time.Now()
		d.left -= d.waited.Sub(begun)
	}()
	select {
	case <-d.freed:
		return true
	case <-timer.C:
		return false
	case <-closed:
		return false
	}
}

// Leave gives a place back, as Place.Leave. Any goroutine may call it.
func (d *Door) Leave(p *Place) {
	p.Leave()
	select {
	case d.freed <- struct{}{}:
	default:
	}
}
