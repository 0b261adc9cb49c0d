package metrics

// Flow is what the kernel knows of TCP connections that are up, all together: struct tcp_info of linux/tcp.h. Counts of a
// connection end with it. What the kernel does not know is 0.
type Flow struct {
	Connections   int     `json:"connections"`
	RoundTrip     float64 `json:"round_trip_seconds"`          // mean of the smoothed ones
	MinRoundTrip  float64 `json:"min_round_trip_seconds"`      // shortest that was measured lately
	Window        uint64  `json:"congestion_window_bytes"`     // sum
	PeerWindow    uint64  `json:"peer_window_bytes"`           // sum of what the peers have room for
	Segment       uint64  `json:"segment_bytes"`               // payload of a segment, the largest
	Delivery      uint64  `json:"delivery_bytes_per_second"`   // sum of the latest rates at which the peers' kernels have acknowledged bytes
	Sent          uint64  `json:"sent_bytes"`                  // retransmitted bytes included
	Retransmitted uint64  `json:"retransmitted_bytes"`         //
	Received      uint64  `json:"received_bytes"`              //
	Segments      uint64  `json:"received_segments"`           // with payload
	OutOfOrder    uint64  `json:"out_of_order_segments"`       // of these, that came after a gap: an earlier one was lost, or overtaken
	Busy          float64 `json:"busy_seconds"`                // in which there were bytes to send or to acknowledge, summed over the connections
	PeerLimited   float64 `json:"peer_limited_seconds"`        // of these, in which the peer's receive window was full
	BufferLimited float64 `json:"send_buffer_limited_seconds"` // of these, in which the send buffer was too small
}

// Plus adds other connections.
func (f *Flow) Plus(other *Flow) {
	if all := f.Connections + other.Connections; all > 0 {
		f.RoundTrip = (f.RoundTrip*float64(f.Connections) + other.RoundTrip*float64(other.Connections)) / float64(all)
	}
	if f.MinRoundTrip == 0 || other.MinRoundTrip > 0 && other.MinRoundTrip < f.MinRoundTrip {
		f.MinRoundTrip = other.MinRoundTrip
	}
	f.Connections += other.Connections
	f.Window += other.Window
	f.PeerWindow += other.PeerWindow
	f.Segment = max(f.Segment, other.Segment)
	f.Delivery += other.Delivery
	f.Sent += other.Sent
	f.Retransmitted += other.Retransmitted
	f.Received += other.Received
	f.Segments += other.Segments
	f.OutOfOrder += other.OutOfOrder
	f.Busy += other.Busy
	f.PeerLimited += other.PeerLimited
	f.BufferLimited += other.BufferLimited
}
