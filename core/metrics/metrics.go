// Package metrics counts what an engine does, without locks on the way of a byte, and describes it as plain values. It knows
// neither the engine nor any format that these values are written in.
//
//   - Engine has the counters of an engine, Peers those by peer, Histogram durations.
//   - Stats is all of them at one moment, and what the engine's parts say of themselves.
package metrics

import (
	"sync/atomic"
	"time"
)

// cacheLine is what processors share or not, in bytes. Two of them are fetched together.
const cacheLine = 128

// Operation is the direction of a request: the values are those of core.Opcode. Mixed is a batch with requests of both.
type Operation int

// The operations.
const (
	Read Operation = iota
	Write
	Mixed
	operations
)

// Operations are the directions of requests.
var Operations = [...]Operation{Read, Write}

func (o Operation) String() string { return [...]string{"read", "write", "mixed"}[o] }

// Reason is why a request failed.
type Reason int

// The reasons.
const (
	Rejected    Reason = iota // the peer has no such memory registered, or its descriptor does not show it
	Connection                // the connection was lost, or there is none
	Stalled                   // nothing moved for MC_TCP_PROGRESS_TIMEOUT_SEC, or no answer came for MC_TCP_STATUS_TIMEOUT_SEC
	PeerFailed                // the peer said that it could not move the bytes
	LocalMemory               // the request is impossible, or local memory cannot be accessed
	Untrusted                 // one side refused the other
	NoMetadata                // the peer's descriptor or address could not be had
	TimedOut                  // given up after MC_SLICE_TIMEOUT
	Cancelled                 // given up by the caller
	Closed                    // the engine was closed
	Other
	reasons
)

// Reasons are all reasons.
func Reasons() (all []Reason) {
	for r := range reasons {
		all = append(all, r)
	}
	return all
}

func (r Reason) String() string {
	return [...]string{
		"rejected", "connection", "stalled", "peer", "local_memory", "security", "metadata", "timeout", "cancelled", "closed", "other",
	}[r]
}

// Engine has the counters of one engine.
type Engine struct {
	Peers *Peers // whose memory the engine reads and writes
	Own   Peer   // the engine itself, for its own memory

	Fetches, Publications, Addresses Call // requests for descriptors, to publish its own, and for addresses

	NotificationsSent, NotificationsNotSent     atomic.Uint64
	NotificationsReceived, NotificationsRefused atomic.Uint64

	stripes  [4]stripe
	failures [reasons]atomic.Uint64
	traced   [operations]exemplars // of the batches' durations
}

// NewEngine makes counters that are 0. So many peers are shown by their names.
func NewEngine(peers int) *Engine { return &Engine{Peers: NewPeers(peers)} }

// Call counts requests of one kind to others.
type Call struct {
	took   Histogram
	failed atomic.Uint64
}

// Observe counts a request that took so long, and err is how it ended.
func (c *Call) Observe(took time.Duration, err error) {
	c.took.Observe(took)
	if err != nil {
		c.failed.Add(1)
	}
}

// Calls are the counts so far.
func (c *Call) Calls() Calls {
	took := c.took.Distribution()
	return Calls{Durations: took.Durations(), Failures: c.failed.Load()}
}

// stripe is a part of the counters of batches. Batches that end on several processors at once count in different ones.
type stripe struct {
	durations [operations]Histogram // of the batches that ended
	failed    atomic.Uint64         // batches
	requests  [2]atomic.Uint64      // completed ones, by operation
	bytes     [2]atomic.Uint64      // their payload
	_         [cacheLine]byte
}

// Batch is a batch that has ended, or what was submitted to one since it ended the last time.
type Batch struct {
	Number   uint64 // batches with different ones may count at the same time
	Took     time.Duration
	Failed   bool      // a request of it has failed
	Requests [2]uint64 // those that have completed, by operation
	Bytes    [2]uint64 // their payload

	Operations [2]bool // which there were
}

// Operation is that of all requests of the batch.
func (b *Batch) Operation() Operation {
	switch b.Operations {
	case [2]bool{true, false}:
		return Read
	case [2]bool{false, true}:
		return Write
	}
	return Mixed
}

// CountBatch counts a batch that has ended.
func (e *Engine) CountBatch(b *Batch) {
	s := &e.stripes[b.Number%uint64(len(e.stripes))]
	s.durations[b.Operation()].Observe(b.Took)
	if b.Failed {
		s.failed.Add(1)
	}
	for _, op := range Operations {
		if b.Requests[op] > 0 {
			s.requests[op].Add(b.Requests[op])
			s.bytes[op].Add(b.Bytes[op])
		}
	}
}

// CountTraced notes that a batch that has ended is in the trace.
func (e *Engine) CountTraced(b *Batch, traceID string) { e.traced[b.Operation()].put(b.Took, traceID) }

// CountFailures counts requests that fail.
func (e *Engine) CountFailures(r Reason, requests uint64) { e.failures[r].Add(requests) }

// Describe sets the parts of a description that these counters know.
func (e *Engine) Describe(s *Stats) {
	t := e.Totals()
	s.Batches, s.Requests, s.Bytes, s.Failures = map[string]Durations{}, map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
	for op := range operations {
		d := t.Durations[op].Durations()
		d.Exemplars = e.traced[op].all()
		s.Batches[op.String()] = d
	}
	for _, op := range Operations {
		s.Requests[op.String()], s.Bytes[op.String()] = t.Requests[op], t.Bytes[op]
	}
	for _, r := range Reasons() {
		s.Failures[r.String()] = t.Failures[r]
	}
	s.FailedBatches = t.FailedBatches
	s.Metadata = map[string]Calls{"fetch": e.Fetches.Calls(), "publish": e.Publications.Calls(), "address": e.Addresses.Calls()}
	s.Notifications = Notifications{
		Sent: e.NotificationsSent.Load(), SendFailures: e.NotificationsNotSent.Load(),
		Received: e.NotificationsReceived.Load(), Refused: e.NotificationsRefused.Load(),
	}
}

// DescribePeers describes the peers, and what state they are in. The engine's own memory is among them if it was used.
func (e *Engine) DescribePeers(states map[*Peer]PeerState) []InitiatorPeer {
	byName := map[string]PeerState{}
	for p, state := range states {
		name := e.Peers.NameOf(p)
		sum := byName[name]
		sum.Plus(state)
		byName[name] = sum
	}
	shown := e.Peers.Values(nil)
	if own := e.Own.Counts(); own != (PeerCounts{}) {
		shown = append(shown, Shown{OwnMemory, own})
	}
	all := make([]InitiatorPeer, 0, len(shown))
	for _, peer := range shown {
		c, state := &peer.Counts, byName[peer.Name]
		all = append(all, InitiatorPeer{
			Peer: peer.Name, Read: c.MovedOf(Read), Write: c.MovedOf(Write), Failures: c.Failures(), Retries: c[Retries],
			Refusals: c[Refusals], Connected: c[Connected], Lost: c[Lost], Unreachable: c[Unreachable],
			Connections: state.Connections, Queued: state.Queued, InFlight: state.InFlight, Flow: state.Flow,
		})
	}
	return all
}

// Totals are the counts of an engine at one moment.
type Totals struct {
	Durations     [operations]Distribution // of the batches that have ended, by operation
	FailedBatches uint64
	Requests      [2]uint64 // in batches that have ended: those that have completed, by operation
	Bytes         [2]uint64 // their payload
	Failures      [reasons]uint64
}

// Totals returns the counts so far.
func (e *Engine) Totals() (t Totals) {
	for i := range e.stripes {
		s := &e.stripes[i]
		for op := range t.Durations {
			s.durations[op].addTo(&t.Durations[op])
		}
		t.FailedBatches += s.failed.Load()
		for _, op := range Operations {
			t.Requests[op] += s.requests[op].Load()
			t.Bytes[op] += s.bytes[op].Load()
		}
	}
	for r := range t.Failures {
		t.Failures[r] = e.failures[r].Load()
	}
	return t
}

// Duration is how long batches took, whatever their operation.
func (t *Totals) Duration() (all Distribution) {
	for _, d := range t.Durations {
		all = all.Plus(d)
	}
	return all
}

// Failed is how many requests have failed.
func (t *Totals) Failed() (n uint64) {
	for _, f := range t.Failures {
		n += f
	}
	return n
}
