package metrics

// Stats describes an engine at one moment. What counts begins at 0 when the engine is made. Its JSON is an interface: keys are
// added, and not taken away.
type Stats struct {
	Version  string  `json:"version"` // of the library
	Engine   string  `json:"engine"`  // its name
	Identity string  `json:"identity"`
	Uptime   float64 `json:"uptime_seconds"`

	Batches       map[string]Durations `json:"batches"` // those that have ended, failed ones included: read, write, or mixed
	FailedBatches uint64               `json:"failed_batches"`
	Requests      map[string]uint64    `json:"requests"`  // that have completed, in batches that have ended: read, write
	Bytes         map[string]uint64    `json:"bytes"`     // their payload
	Failures      map[string]uint64    `json:"failures"`  // requests by reason
	Unfinished    Unfinished           `json:"in_flight"` // now
	Initiator     []InitiatorPeer      `json:"initiator"` // peers whose memory this engine reads and writes
	Target        []TargetPeer         `json:"target"`    // hosts that read and write this engine's memory
	Sessions      Sessions             `json:"sessions"`
	Handshakes    Handshakes           `json:"handshakes"`
	Notifications Notifications        `json:"notifications"`
	Metadata      map[string]Calls     `json:"metadata"` // requests to peers or to the store: fetch, publish, address
	Security      Security             `json:"security"`
	Staging       []Staging            `json:"staging"`
	Process       Process              `json:"process"` // that the engine is in
}

// Durations are a distribution.
type Durations struct {
	Count   uint64   `json:"count"`
	Sum     float64  `json:"sum_seconds"`
	P50     float64  `json:"p50_seconds"` // estimated: it lies between the right two bounds
	P99     float64  `json:"p99_seconds"`
	Buckets []Bucket `json:"buckets"`

	Exemplars []*Exemplar `json:"-"` // one for each bucket, nil where there is none, and one above the last bound; nil for none at all
}

// Bucket is how many durations do not exceed a bound.
type Bucket struct {
	Bound float64 `json:"le_seconds"`
	Count uint64  `json:"count"`
}

// Durations are the distribution as plain values.
func (d *Distribution) Durations() Durations {
	all := Durations{Count: d.Count(), Sum: d.Sum.Seconds(), P50: d.Quantile(.5).Seconds(), P99: d.Quantile(.99).Seconds()}
	below := uint64(0)
	for i := range Bounds {
		below += d.Counts[i]
		all.Buckets = append(all.Buckets, Bucket{Bound(i).Seconds(), below})
	}
	return all
}

// Unfinished is what has not ended.
type Unfinished struct {
	Batches  uint64 `json:"batches"`
	Requests uint64 `json:"requests"`
	Bytes    uint64 `json:"bytes"` // of these requests, that have not arrived yet
}

// Moved is what was moved in one direction.
type Moved struct {
	Requests uint64            `json:"requests"`
	Bytes    map[string]uint64 `json:"bytes"` // payload by path: tcp, host, or local
}

// All is the payload, whatever its path.
func (m *Moved) All() (bytes uint64) {
	for _, n := range m.Bytes {
		bytes += n
	}
	return bytes
}

// InitiatorPeer is a peer whose memory this engine reads and writes. The name "local" is the engine's own memory, and OtherPeers those
// beyond KVFERRY_METRICS_PEERS.
type InitiatorPeer struct {
	Peer        string            `json:"peer"`
	Read        Moved             `json:"read"`
	Write       Moved             `json:"write"`
	Failures    map[string]uint64 `json:"failures"`    // requests by reason; those that are 0 are left out
	Retries     uint64            `json:"retries"`     // ranges that were sent again because their connection broke
	Refusals    uint64            `json:"refusals"`    // ranges that the peer has refused
	Connected   uint64            `json:"connected"`   // connections that came up
	Lost        uint64            `json:"lost"`        // connections that were lost
	Unreachable uint64            `json:"unreachable"` // attempts to connect that failed
	Connections Connections       `json:"connections"`
	Queued      uint64            `json:"queued_bytes"`    // not sent yet
	InFlight    uint64            `json:"in_flight_bytes"` // sent, and not acknowledged yet
	Flow        Flow              `json:"tcp"`             // the connections over the network
}

// Connections are the connections to a peer, by state.
type Connections struct {
	Connecting int `json:"connecting"`
	Idle       int `json:"idle"`
	Busy       int `json:"busy"`   // something is in flight
	Ending     int `json:"ending"` // they take nothing more
}

// Transport is what a transport says of itself.
type Transport struct {
	Initiator map[*Peer]PeerState
	Target    []TargetPeer
	Sessions  Sessions
}

// PeerState is a peer of the initiator now.
type PeerState struct {
	Connections
	Queued, InFlight uint64 // bytes
	Flow             Flow
}

// Plus adds another state.
func (s *PeerState) Plus(other PeerState) {
	s.Connecting += other.Connecting
	s.Idle += other.Idle
	s.Busy += other.Busy
	s.Ending += other.Ending
	s.Queued += other.Queued
	s.InFlight += other.InFlight
	s.Flow.Plus(&other.Flow)
}

// TargetPeer is a host that reads and writes this engine's memory. A READ by a process on the same host is not seen.
type TargetPeer struct {
	Peer        string `json:"peer"`
	Read        Moved  `json:"read"`
	Write       Moved  `json:"write"`
	Refusals    uint64 `json:"refusals"`    // connections that ended with a request that was refused
	Lost        uint64 `json:"lost"`        // connections that ended in an error, those with refused requests included
	Connections int    `json:"connections"` // now
	Flow        Flow   `json:"tcp"`         // those over the network
}

// Sessions are the data connections of peers.
type Sessions struct {
	Open    int64  `json:"open"`
	Limit   int64  `json:"limit"`
	Waiting int64  `json:"waiting"`  // for a place
	Served  uint64 `json:"served"`   // connections that became a session
	Refused uint64 `json:"refused"`  // connections that found no place
	GaveWay uint64 `json:"gave_way"` // to another connection
	Failed  uint64 `json:"failed"`   // connections that ended before their session began, for example in TLS
	Foreign uint64 `json:"foreign"`  // connections of other users of this host
}

// Plus adds those of another transport.
func (s *Sessions) Plus(other *Sessions) {
	s.Open += other.Open
	s.Limit += other.Limit
	s.Waiting += other.Waiting
	s.Served += other.Served
	s.Refused += other.Refused
	s.GaveWay += other.GaveWay
	s.Failed += other.Failed
	s.Foreign += other.Foreign
}

// Handshakes are the connections at the handshake port.
type Handshakes struct {
	Open     int64             `json:"open"`
	Limit    int64             `json:"limit"`
	Refused  uint64            `json:"refused"`  // connections that found no place
	GaveWay  uint64            `json:"gave_way"` // to another connection
	Answered map[string]uint64 `json:"answered"` // requests: connection, metadata, notify, probe
	Plain    uint64            `json:"plain"`    // requests that were refused because they came without TLS
	Failed   uint64            `json:"failed"`   // connections that ended without an answer
}

// Notifications are messages between engines.
type Notifications struct {
	Sent         uint64 `json:"sent"`
	SendFailures uint64 `json:"send_failures"`
	Received     uint64 `json:"received"`
	Refused      uint64 `json:"refused"` // received ones for which there was no room
	Waiting      uint64 `json:"waiting"` // for the program to fetch them
	WaitingBytes uint64 `json:"waiting_bytes"`
}

// Calls are requests of one kind to others.
type Calls struct {
	Durations
	Failures uint64 `json:"failures"`
}

// Security is what was found out about peers.
type Security struct {
	Mode          string `json:"mode"`
	Refused       uint64 `json:"refused"` // peers that were refused for what they presented
	Older         uint64 `json:"older"`   // peers that were accepted by another secret than the first one
	Reloads       uint64 `json:"reloads"` // changed files that were taken
	FailedReloads uint64 `json:"failed_reloads"`
	NotAllowed    uint64 `json:"not_allowed"` // connections from addresses that KVFERRY_ALLOW does not have

	Failures []SecurityFailures `json:"failures"` // by peer and reason; some peers are shown together, as OtherPeers
}

// SecurityFailures are those of one peer for one reason: one of the two could not prove to the other who it is.
type SecurityFailures struct {
	Peer   string `json:"peer"`   // its address; "local" for a process on this host, "store" for an entry of the metadata store
	Reason string `json:"reason"` // a security.Kind
	Count  uint64 `json:"count"`
}

// Staging is one direction of the staging of a device.
type Staging struct {
	Device    string  `json:"device"`    // npu:0
	Direction string  `json:"direction"` // "out", from the device, "in", or "direct", from a device to this one
	Pool      uint64  `json:"pool_bytes"`
	Leased    uint64  `json:"leased_bytes"` // of the pool
	Waits     uint64  `json:"waits"`        // how often somebody had to wait for a part of the pool
	Jobs      uint64  `json:"jobs"`         // sets of copies that were done
	Failed    uint64  `json:"failed_jobs"`
	Bytes     uint64  `json:"bytes"`        // of the jobs that were done
	Copying   float64 `json:"copy_seconds"` // that jobs took, from their first copy on
}

// Process is the process that an engine is in. What cannot be found out is 0.
type Process struct {
	Goroutines      uint64 `json:"goroutines"`
	Threads         uint64 `json:"threads"`
	OpenFiles       uint64 `json:"open_files"`
	MaxFiles        uint64 `json:"max_files"`
	ResidentBytes   uint64 `json:"resident_bytes"`
	HeapBytes       uint64 `json:"heap_bytes"` // of the library's objects
	DroppedLogLines uint64 `json:"dropped_log_lines"`
}

// MovedOf is what counts say of an operation.
func (c *PeerCounts) MovedOf(o Operation) Moved {
	m := Moved{Requests: c[RequestsOf(o)], Bytes: map[string]uint64{}}
	for _, p := range Paths {
		m.Bytes[p.String()] = c[BytesOf(o, p)]
	}
	return m
}

// Failures are the reasons that have occurred.
func (c *PeerCounts) Failures() map[string]uint64 {
	all := map[string]uint64{}
	for _, r := range Reasons() {
		if n := c[FailuresOf(r)]; n > 0 {
			all[r.String()] = n
		}
	}
	return all
}
