package client

import (
	"slices"
	"time"

	"kvferry/core/metadata"
)

// Which carriers there are, and which of them are woken. dispatch starts another lane, unless one of these is true:
//
//  1. There are as many as the queue is worth (worth). An empty queue is worth none, and so is one with too many unverified
//     pieces (wanted).
//  2. There are as many as the configuration and the distance of the peer allow (mostCarriers).
//  3. The peer has a carrier, and there is no room for the descriptors of another connection (descriptors.go).
//  4. The peer takes no pipelined requests, so each has a connection of its own (pipelined). Or this side has closed the peer.
//
// An open lane sends, unless one of these is true:
//
//  1. dispatch has not woken it, because fewer lanes than there are can share the queue.
//  2. It is the first lane, which is reserved for short works (reservedLane), or only short works are queued, and those are left
//     to the reserved lane (take.go).
//  3. It has its share of the bytes in flight (share), its window is full, or it waits for a page (lane_send.go).
//  4. The pieces that take found are set aside: they are unverified or blocked (take.go), or may have to wait for a page
//     (cautious.go).
const (
	// oneShotSize bounds a request that has a connection of its own. On lanes the bound is MC_TCP_SLICE_SIZE: small enough
	// that all lanes share a large task, large enough that its header costs nothing.
	oneShotSize = 16 << 20
	// turnSize is how many bytes a cursor gives before it is the next cursor's turn.
	turnSize = 1 << 20
	// laneSize and the next four are how many bytes a queue must hold for each lane (worth).
	laneSize = 1 << 20
	// stagedSize is for a work that comes in parts, as it is staged: all lanes begin soon, and have all of a part before
	// they have the next one.
	stagedSize = 256 << 10
	// encryptedSize is for bytes that are encrypted on the way: encryption takes most of the time, and each lane has
	// a thread for it at either end.
	encryptedSize = 512 << 10
	// spreadSize is for a machine that has processors for more lanes: a batch of some MiB is over sooner when more of
	// them share it.
	spreadSize = 512 << 10
	// mooncakeSize is for bytes that Mooncake sends. It sends from one thread, so more lanes only divide that thread.
	mooncakeSize = 4 << 20
	// shortWork bounds a work that does not queue behind longer ones. When it finds more than busyBytes in flight on every
	// lane, the first lane is reserved for short works for reserveTime.
	shortWork   = 64 << 10
	busyBytes   = 256 << 10
	reserveTime = time.Second
	// maxUnverified bounds the pieces that wait for the descriptor. With so many the queue stands still.
	maxUnverified = 1024
)

// dispatch starts the carriers that the queue is worth, and wakes lanes. When mayWrite is set, the calling goroutine writes to
// an idle lane itself.
func (p *peer) dispatch(mayWrite bool) {
	p.mu.Lock()
	d := p.segment.Descriptor()
	onLanes := p.pipelined(d)
	if p.closed == nil {
		p.startCarriers(onLanes)
	}
	lanes := p.listed().lanes
	wanted := p.wanted(onLanes)
	reserved := p.reservedLane()
	if reserved != nil && !p.hasShort() {
		reserved, lanes = nil, lanes[1:]
	}
	p.mu.Unlock()

	var mine pipelined // the others start first: what this goroutine does takes longer than to wake them
	if mayWrite && wanted > 0 {
		if i := slices.IndexFunc(lanes, pipelined.idle); i >= 0 {
			mine = lanes[i]
			wanted--
		}
	}
	for _, idle := range []bool{true, false} {
		for _, l := range lanes {
			if wanted > 0 && l != mine && l.idle() == idle {
				l.wake()
				wanted--
			}
		}
	}
	if reserved != nil && reserved != mine {
		reserved.wake() // no other lane takes short works
	}
	if mine != nil && !mine.writeIfIdle() {
		mine.wake()
	}
}

// allBusy reports whether a short work would wait on every carrier except a reserved one. The lock is held.
func (p *peer) allBusy() bool {
	reserved, listed := p.reservedLane(), p.listed()
	if len(listed.all) == 0 || len(listed.lanes) < len(listed.all) {
		return false
	}
	return !slices.ContainsFunc(listed.lanes, func(l pipelined) bool { return l != reserved && l.load() <= busyBytes })
}

// reservedLane is the lane for short works, or nil. There is one only beside others. The lock is held.
func (p *peer) reservedLane() pipelined {
	lanes := p.listed().lanes
	if len(lanes) < 2 || p.reserved.IsZero() || time.Now().After(p.reserved) {
		return nil
	}
	return lanes[0]
}

// pipelined reports whether requests travel on lanes. Otherwise each has a connection of its own.
func (p *peer) pipelined(d *metadata.Descriptor) bool {
	return p.acknowledges(d) && p.config.ConnectionPool
}

// acknowledges reports whether the peer is spoken to in version 2.
func (p *peer) acknowledges(d *metadata.Descriptor) bool {
	return d.ProtoVersion >= 2 && !p.config.ForceProtoV1
}

// wanted is the number of carriers that the queue is worth. The lock is held.
func (p *peer) wanted(pipelined bool) int {
	if p.isEmpty() || len(p.unverified) >= maxUnverified {
		return 0
	}
	lanes := p.worth(p.queued)
	if !pipelined {
		lanes = p.requests()
	}
	if pipelined && time.Now().Before(p.reserved) {
		lanes++
	}
	return int(max(1, min(lanes, uint64(p.mostCarriers(pipelined)))))
}

// mostCarriers is how many carriers there may be. The lock is held.
func (p *peer) mostCarriers(pipelined bool) int {
	config := p.config
	most := config.LanesPerPeer
	if pipelined && (p.distance == unknown || p.distance == far) {
		most = min(most, config.LanesPerLink)
		if time.Now().Before(p.reserved) {
			most = min(most+1, config.LanesPerPeer)
		}
	}
	return most
}

// distance says whether a peer is on this host, in the same rack, or at the other end of a longer link.
type distance int

const (
	unknown distance = iota // no lane was ever connected
	onHost
	near
	far
)

// farAway is the round trip from which on a peer is far. In a rack a round trip takes some tens of microseconds.
const farAway = 300 * time.Microsecond

// distanceOf is the distance of the peer at the other end of a connection, of which a round trip takes so long. local says
// that it does not leave the host.
func distanceOf(roundTrip time.Duration, local bool) distance {
	switch {
	case local:
		return onHost
	case roundTrip >= farAway:
		return far
	}
	return near
}

// connected notes how far away the peer is, and whether payload is encrypted on the way, when a lane is connected. The
// queue may be worth more lanes then.
func (p *peer) connected(away distance, encrypted bool) {
	p.mu.Lock()
	first := p.distance == unknown
	p.distance, p.encrypted = away, encrypted
	p.mu.Unlock()
	if first {
		p.dispatch(false)
	}
}

// requests is the number of requests that are queued, or a larger number where it would have to be counted. The lock is held.
func (p *peer) requests() uint64 {
	n := uint64(len(p.returned) + p.again)
	for _, c := range p.cursors {
		if c.parts == nil && c.left <= oneShotSize && c.left == c.work.Tasks[c.task].Length-c.skip {
			n++
		} else {
			n += c.left
		}
	}
	return n
}

// isEmpty reports whether there is nothing to take, now or later. The lock is held.
func (p *peer) isEmpty() bool {
	return len(p.cursors) == 0 && len(p.returned) == 0 && len(p.aside) == 0
}

// startCarriers starts the carriers that are missing. The lock is held.
func (p *peer) startCarriers(onLanes bool) {
	for n := len(p.listed().all); n < p.wanted(onLanes) && (n == 0 || p.client.Descriptors.HasRoom(connectionDescriptors)); n++ {
		var c carrier
		var run func()
		if onLanes {
			l := newLane(p, &p.environment)
			c, run = l, l.run
		} else {
			o := newOneShot(p, &p.environment)
			c, run = o, o.run
		}
		p.carriers.Store(newCarriers(append(slices.Clip(p.listed().all), c)))
		p.client.running.Go(run)
	}
}

// held is how many bytes are queued or in flight. The lock is held.
func (p *peer) held() uint64 {
	all := p.queued
	for _, l := range p.listed().lanes {
		all += l.load()
	}
	return all
}

// shareLeft is how many more bytes a carrier may have in flight. The share of a lane is all that is queued or in flight, divided by
// the lanes that this is worth. Without it the first lane would take as much as its socket takes, and without end where it sends
// headers alone. The lock is held.
func (p *peer) shareLeft(c carrier) uint64 {
	var has uint64
	if lane, ok := c.(pipelined); ok {
		has = lane.load()
	}
	share := p.share()
	return share - min(has, share)
}

// share is how many bytes a lane may have in flight. The lock is held.
func (p *peer) share() uint64 {
	all := p.held()
	sharers := max(1, min(p.worth(all), uint64(len(p.listed().all))))
	return (all + sharers - 1) / sharers
}

// worth is the number of lanes that so many bytes are worth. The lock is held.
func (p *peer) worth(bytes uint64) uint64 {
	each := uint64(laneSize)
	switch {
	case p.lastReading && !p.segment.Descriptor().IsKvferry:
		each = mooncakeSize
	case p.lastStaged:
		each = stagedSize
	case p.encrypted:
		each = encryptedSize
	case p.spreads():
		each = spreadSize
	}
	return (bytes + each - 1) / each
}

// spreads reports whether there are processors for more lanes than the bytes are worth otherwise. The lock is held.
func (p *peer) spreads() bool {
	return p.distance == near && p.config.LanesPerPeer > 1 && p.client.Processors.Abound()
}
