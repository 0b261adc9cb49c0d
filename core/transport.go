package core

// Endpoint is where and how peers reach a transport's data port; it goes into the segment descriptor.
type Endpoint struct {
	Host           string // without brackets
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

	// Submit takes over one submission's work for one segment. It does not wait for the network: it queues, or moves
	// what can be moved at once. Failures are reported per range by Work.Settle, also before Submit returns. w is not
	// copied by value.
	Submit(w *Work)

	// Assist lets the calling goroutine, who waits for work on the segment, help to finish it: it returns when done
	// reports true, and otherwise after a fraction of a millisecond. A transport may leave it out.
	Assist(s *Segment, done func() bool)

	// Abort makes the transport settle, soon, everything it holds whose Work.Aborted is not nil: queued ranges at
	// once, those in flight after what moves their bytes has stopped. Ranges of aborted work that turn up later are
	// settled unsent. Abort need not wait.
	Abort()

	// Evict ends, soon, whatever moves bytes of a region on behalf of a peer. The region takes no new pins by then.
	Evict(r *Region)

	// Holders names, for an error, the peers for whom bytes of a region are moved, or may be: "peer 10.0.0.2:4711".
	Holders(r *Region) []string

	// Moved is how many bytes it has sent to, and received from, a segment's owner on the connections that are up, whatever
	// they were. A number that is another one the next time says that something moves.
	Moved(s *Segment) uint64

	// Forget drops the connections to a segment's owner. Ranges still held for it fail, and so does what comes later, of a
	// Submit that was on its way: by then Segment.Removed has the reason.
	Forget(s *Segment)

	// Links describes the peers that the transport has to do with.
	Links() []Link

	// Close settles everything that is still held, closes every connection, and returns when no goroutine of the
	// transport is left, or after EndingTime. In that case the error has ErrInUse in it, and names what is stuck and the
	// memory that it may use; that ends by itself, touches no other memory, and a further Close waits for it again.
	// Submit settles all it gets once Close was called.
	Close() error
}

// Link is one peer as its transport sees it.
type Link struct {
	Peer        string `json:"peer"` // segment name, or the address of a peer that connected to us
	Transport   string `json:"transport"`
	Direction   string `json:"direction"` // "initiator" or "target": which side this engine is
	Connections int    `json:"connections"`
	BytesOut    uint64 `json:"bytes_out"` // payload that left this process
	BytesIn     uint64 `json:"bytes_in"`  // payload that came in
	Errors      uint64 `json:"errors"`
}
