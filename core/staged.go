package core

import (
	"fmt"
	"sync"
	"time"

	"kvferry/core/staging"
	"kvferry/core/status"
)

// A work whose local memory is on a device goes this way. The transport sees host memory only:
//
//  1. submit queues the work with the others for the same peer, device and opcode. pump cuts the queue into chunks, as
//     many as staging blocks can be leased for (staged_queue.go). A chunk is a lease and the shares of tasks whose bytes pass
//     through it (staged_chunk.go).
//  2. WRITE: a job copies the shares into the lease. Then the chunk goes to the transport, as a work whose local addresses
//     are in the lease. What the transport settles is settled for the tasks at once.
//  3. READ: the chunk goes to the transport first, together with others. When all its ranges are settled, a job copies those that
//     arrived to the device. They are settled for the tasks when that has ended.
//  4. end gives the lease back. The account of a queue that waits for a lease calls its pump.
//
// Copying and the network overlap, since several chunks for a peer are under way. What is given up is settled at once while
// it is queued, and otherwise when the step that it is in has ended.

// stager has the works whose local memory is on a device.
type stager struct {
	mu     sync.Mutex
	queues map[stagedRoute]*stagedQueue
	closed bool
	chunks group // chunks that are under way
}

func newStager() *stager { return &stager{queues: map[stagedRoute]*stagedQueue{}} }

// stagedRoute is what works in the same queue have in common.
type stagedRoute struct {
	segment *Segment
	device  *staging.Device
	opcode  Opcode
}

// submit takes over a work. t is the transport that gets its chunks.
func (s *stager) submit(w *Work, t Transport) {
	c := newStagedCursor(w)
	for {
		q, err := s.queue(stagedRoute{w.Segment, w.device, w.Tasks[w.Head].Opcode}, t)
		if err != nil {
			w.settleAll(err)
			return
		}
		if q.add(c) {
			q.pump()
			return
		}
	}
}

// queue finds or makes the queue of a route.
func (s *stager) queue(r stagedRoute, t Transport) (*stagedQueue, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, closedError()
	}
	if err := r.segment.Removed(); err != nil {
		return nil, err
	}
	q := s.queues[r]
	if q == nil {
		q = &stagedQueue{stager: s, route: r, transport: t}
		q.account = r.device.Account(directionOf(r.opcode), staging.Initiator, q.pump)
		s.queues[r] = q
	}
	return q, nil
}

// directionOf is the direction in which the local bytes of a request pass through staging blocks.
func directionOf(o Opcode) staging.Direction {
	if o == Write {
		return staging.Out
	}
	return staging.In
}

// all are all queues.
func (s *stager) all() []*stagedQueue {
	s.mu.Lock()
	defer s.mu.Unlock()
	queues := make([]*stagedQueue, 0, len(s.queues))
	for _, q := range s.queues {
		queues = append(queues, q)
	}
	return queues
}

// abort settles the queued part of aborted works.
func (s *stager) abort() {
	for _, q := range s.all() {
		q.settleQueued()
	}
}

// forget fails the works for a segment that was removed, as far as they are not yet with the transport.
func (s *stager) forget(segment *Segment) {
	for _, q := range s.all() {
		if q.route.segment == segment {
			q.end(segment.Removed())
		}
	}
}

// close settles what is queued, and all work that is submitted from now on. Chunks that are under way go on.
func (s *stager) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, q := range s.all() {
		q.end(closedError())
	}
}

// wait returns when no chunk is under way. After the limit it returns an error that names those that are. It is called after
// close, and after the transports were closed.
func (s *stager) wait(limit time.Duration) error {
	if s.chunks.join(limit) {
		return nil
	}
	return status.Errorf(status.BatchBusy, "staging blocks are %w: %s", ErrInUse, enumerate(s.all(), func(q *stagedQueue) string {
		q.mu.Lock()
		defer q.mu.Unlock()
		return fmt.Sprintf("%d bytes between %s and segment %q", q.underWay, q.route.device.Name(), q.route.segment.Name)
	}))
}
