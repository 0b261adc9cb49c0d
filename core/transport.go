package core

import "kvferry/core/metrics"

// Endpoint is the address of a transport's data port, and the protocol that it understands. The segment descriptor has it.
type Endpoint struct {
	Port           int
	ProtoVersion   int
	SameHostSocket string // socket for peers on the same host; "" for none
	Hello          int    // highest version of the hello that the data port understands; 0 for none
}

// Transport moves bytes between this process and the owners of segments.
//
// Every method may be called from any goroutine. A transport ends each byte range that it was given exactly once, by
// Work.Settle, and does not touch the range's local memory after that.
type Transport interface {
	// Endpoint is what peers need to know to reach it.
	Endpoint() Endpoint

	// Submit takes over works for one segment, which are parts of one submission: one or more, all of the same opcode. It does not
	// wait for the network: it queues the works, or moves the part that can be moved at once. Failures are reported per range by
	// Work.Settle, perhaps before Submit returns. A work must not be copied by value.
	Submit(works ...*Work)

	// TakesTransfers reports whether Submit takes works that are transfers of plans: see Work.Transfer.
	TakesTransfers() bool

	// Expect says that the calling goroutine is about to submit work on the segment, and to call Assist for it. The transport
	// need wake nobody else for answers until the returned function is called, which is never nil. It may do nothing.
	Expect(s *Segment) (end func())

	// Assist lets the calling goroutine, which waits for work on the segment, help to finish it. It returns when done reports
	// true, and otherwise after a fraction of a millisecond, or some milliseconds while other programs want the processors, too.
	// It may do nothing.
	Assist(s *Segment, done func() bool)

	// Abort makes the transport settle the ranges of all work whose Work.Aborted is not nil: queued ranges at once, ranges in
	// flight as soon as nothing moves their bytes any more. Ranges of aborted work that are found later are settled unsent.
	// Abort need not wait.
	Abort()

	// Evict ends the transfers that move bytes of a region on behalf of a peer, and need not wait. Registry.PinRemote does not
	// find the region any more.
	Evict(r *Region)

	// EvictOffer ends the transfers that move bytes on behalf of a peer by an offer, and need not wait. Registry.UseOffer does not
	// find the offer any more.
	EvictOffer(o *Offer)

	// Holders names, for an error, the peers for which bytes of a region are moved, or may be: "peer 10.0.0.2:4711".
	Holders(r *Region) []string

	// Moved is how many bytes, headers included, were sent to and received from a segment's owner on the connections that are
	// up. When it changes, bytes are moving.
	Moved(s *Segment) uint64

	// Forget closes the connections to a segment's owner. Ranges that are held for it fail, and so does work that a call of
	// Submit brings later. Segment.Removed has the reason.
	Forget(s *Segment)

	// Stats describes the transport.
	Stats() metrics.Transport

	// Links describes the peers of the transport.
	Links() []Link

	// Close settles all ranges that are held, closes every connection, and returns when all goroutines of the transport have
	// ended, or after EndingTime. In the second case the error has ErrInUse in it, and names the transfers that are stuck and the
	// memory that they may use. They touch no other memory. Another call of Close waits for them again. After Close was called,
	// Submit settles all work at once.
	Close() error
}

// Which side of a link an engine is.
const (
	AsInitiator = "initiator"
	AsTarget    = "target"
)

// Link is one peer as its transport sees it.
type Link struct {
	Peer        string `json:"peer"` // segment name, or the address of a peer that connected to us
	Transport   string `json:"transport"`
	Direction   string `json:"direction"` // AsInitiator or AsTarget: which side this engine is
	Connections int    `json:"connections"`
	BytesOut    uint64 `json:"bytes_out"` // payload that left this process
	BytesIn     uint64 `json:"bytes_in"`  // payload that came in
	Errors      uint64 `json:"errors"`
}
