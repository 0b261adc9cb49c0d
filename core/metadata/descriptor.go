package metadata

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"math"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"kvferry/core/address"
	"kvferry/core/status"
)

// Buffer is one registered memory range of a segment, in the owner's address space.
type Buffer struct {
	Name   string `json:"name"` // location, as "cpu:0"; never empty on the wire
	Addr   uint64 `json:"addr"`
	Length uint64 `json:"length"` // bytes

	Access Access `json:"kvferry_access,omitempty"` // what its owner lets peers do with it
}

// Access is what the owner of a buffer lets peers do with it. Mooncake knows only ReadWrite, and ignores the others: the owner
// refuses what it has not allowed.
type Access string

const (
	ReadWrite Access = ""
	ReadOnly  Access = "read"
	WriteOnly Access = "write"
)

// UnmarshalJSON reads what is unknown as ReadWrite.
func (a *Access) UnmarshalJSON(encoded []byte) error {
	var text string
	*a = ReadWrite
	if json.Unmarshal(encoded, &text) == nil && (Access(text) == ReadOnly || Access(text) == WriteOnly) {
		*a = Access(text)
	}
	return nil
}

// Descriptor says what a segment holds and how its owner is reached. The JSON form is that of Mooncake's "tcp" protocol.
type Descriptor struct {
	Name           string // what peers open: "host:handshake_port" in P2P mode
	Protocol       string // "tcp"
	DataHost       string // host of the data port, without brackets; "" when the peer does not say
	DataPort       int
	ProtoVersion   int // 1: no acknowledgements, 2: acknowledged frames
	Buffers        []Buffer
	Truncated      bool          // there are more buffers than Buffers lists: they did not fit the handshake frame
	IsKvferry      bool          // the owner is a kvferry engine
	SameHostSocket string        // socket for peers on the same host, see socketName; "" for none
	Identity       string        // of this incarnation of the owner, see identity; "" where the owner has none, as Mooncake's
	Hello          int           // highest version of the hello that its data port understands; 0 for none
	TLS            int           // version of TLS as the engine's ports speak it, see docs/wire.md; 0 for none
	Names          address.Names // further names that the owner goes by, where it says so; see Handlers
	Version        uint64        // of this value among those of its key in a central store, see version.go; 0 for none

	extents    []extent // see BuildIndex
	restricted bool     // likewise: there is a buffer that peers may only read, or only write
}

// extent is a buffer's place in the order of addresses.
type extent struct {
	addr   uint64
	widest int // of the buffers up to this one in that order, the index of the one that ends last
}

// wireDescriptor is the JSON form without the buffers. Pointers tell what is absent or null from what is zero.
type wireDescriptor struct {
	Name           string `json:"name"`
	Protocol       string `json:"protocol"`
	DataPort       *int64 `json:"tcp_data_port"`
	ProtoVersion   *int64 `json:"tcp_proto_version"`
	DataHost       string `json:"tcp_data_host"`
	RDMAServerName string `json:"rdma_server_name"`
	Timestamp      string `json:"timestamp"`
	Truncated      bool   `json:"kvferry_truncated,omitempty"`

	Version version `json:"metadata_version,omitempty"`

	Extensions json.RawMessage `json:"kvferry,omitempty"` // of extensions; another program may put anything there
}

// extensions is what a kvferry engine adds. Mooncake ignores the key.
type extensions struct {
	SameHostSocket string `json:"neighbour,omitempty"`
	Identity       string `json:"identity,omitempty"`
	Hello          int    `json:"hello,omitempty"`
	TLS            int    `json:"tls,omitempty"`

	Names address.Names `json:"names,omitempty"`
}

// socketName is the form of the name of an engine's socket for peers on the same host, in the abstract namespace of
// Unix-domain sockets. The digits are random, so that no other program has the name.
var socketName = regexp.MustCompile(`^kvferry-[0-9a-f]{32}$`)

// identity is 16 random bytes in hexadecimal digits, which no other incarnation of any engine has.
var identity = regexp.MustCompile(`^[0-9a-f]{32}$`)

// Encode gives the JSON form in at most maxLength bytes. Where the buffers do not all fit, the first ones are kept
// and truncated is true; the reader learns it by the key "kvferry_truncated", which Mooncake ignores. The fields beside
// the buffers, some 240 bytes and the two names, are always there.
func (d *Descriptor) Encode(maxLength int) (encoded []byte, truncated bool) {
	port, proto := int64(d.DataPort), int64(d.ProtoVersion)
	wire := wireDescriptor{
		Name: d.Name, Protocol: d.Protocol, DataPort: &port, ProtoVersion: &proto, DataHost: d.DataHost,
		Timestamp: time.Now().Format("2006-01-02 15:04:05.000000"), Version: version(d.Version),
	}
	if d.IsKvferry {
		wire.Extensions = mustEncode(extensions{SameHostSocket: d.SameHostSocket, Identity: d.Identity, Hello: d.Hello, TLS: d.TLS, Names: d.Names})
	}
	fields := mustEncode(wire)
	const opening, closing, shortened = `,"buffers":[`, `]}`, `],"kvferry_truncated":true}`
	encoded = append(bytes.TrimSuffix(fields, []byte("}")), opening...)
	kept := len(encoded) // as far as leaves room for the ending of a shortened list
	for i, b := range d.Buffers {
		if i > 0 {
			encoded = append(encoded, ',')
		}
		encoded = append(encoded, mustEncode(b)...)
		if len(encoded)+len(closing) > maxLength {
			return append(encoded[:kept], shortened...), true
		}
		if len(encoded)+len(shortened) <= maxLength {
			kept = len(encoded)
		}
	}
	return append(encoded, closing...), false
}

// mustEncode is json.Marshal for types that it cannot fail on.
func mustEncode(v any) []byte {
	encoded, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return encoded
}

// ParseDescriptor reads the JSON form. It takes what Mooncake takes: unknown keys are ignored, absent or null
// buffers are none, an absent or null protocol version is 1. Like Mooncake it refuses a descriptor as a whole when a
// required field is missing or of another type, or when a buffer has no name, no address or no length; one that wraps
// around the end of the address space is refused too. Errors carry status.MalformedJSON, status.NotSupportedTransport
// where the peer's protocol is not "tcp", or status.RejectHandshake where a kvferry peer refuses this engine.
func ParseDescriptor(encoded []byte) (*Descriptor, error) {
	var wire struct {
		wireDescriptor
		Protocol json.RawMessage `json:"protocol"` // also read where it is a list, to name it in the error
		Buffers  []Buffer        `json:"buffers"`
	}
	if isNull(encoded) {
		return nil, malformed("the segment descriptor is null: the peer keeps its metadata in a central store, and " +
			"has to be started with P2PHANDSHAKE to be reached this way")
	}
	if err := json.Unmarshal(encoded, &wire); err != nil {
		return nil, jsonError("segment descriptor", err)
	}
	if err := checkProtocol(wire.Protocol); err != nil {
		return nil, err
	}
	if wire.DataPort == nil || *wire.DataPort < 1 || *wire.DataPort > math.MaxUint16 {
		return nil, malformed("segment descriptor: tcp_data_port %v is not a port", orAbsent(wire.DataPort))
	}
	if wire.DataHost != "" {
		if err := address.CheckHost(wire.DataHost); err != nil {
			return nil, malformed("segment descriptor: tcp_data_host: %w", err)
		}
	}
	for i, b := range wire.Buffers {
		if b.Name == "" || b.Addr == 0 || b.Length == 0 || b.Length-1 > math.MaxUint64-b.Addr {
			return nil, malformed("segment descriptor: buffer %d (name %.80q, addr %#x, length %d) is not a range with a name",
				i, b.Name, b.Addr, b.Length)
		}
	}
	d := &Descriptor{
		Name: wire.Name, Protocol: "tcp", DataHost: wire.DataHost, DataPort: int(*wire.DataPort),
		ProtoVersion: protoVersion(wire.ProtoVersion), Buffers: wire.Buffers, Truncated: wire.Truncated,
		Version: uint64(wire.Version),
	}
	d.readExtensions(wire.Extensions)
	d.BuildIndex()
	return d, nil
}

// readExtensions sets what the extensions say. A field that is malformed counts as absent: the engines do without it.
// An identity without a hello, and a hello without an identity, count as absent too, since neither is of use alone.
func (d *Descriptor) readExtensions(encoded json.RawMessage) {
	var e *extensions
	if json.Unmarshal(encoded, &e) != nil || e == nil {
		return
	}
	d.IsKvferry, d.Names = true, e.Names
	if socketName.MatchString(e.SameHostSocket) {
		d.SameHostSocket = e.SameHostSocket
	}
	if identity.MatchString(e.Identity) && e.Hello >= 1 {
		d.Identity, d.Hello, d.TLS = e.Identity, e.Hello, max(e.TLS, 0)
	}
}

// checkProtocol takes the JSON of the key "protocol"; nil when there is none.
func checkProtocol(encoded json.RawMessage) error {
	switch string(encoded) {
	case `"tcp"`:
		return nil
	case "", "null":
		return malformed("segment descriptor: no protocol")
	case `"rdma"`:
		return status.Errorf(status.NotSupportedTransport, `the segment's protocol is "rdma", where "tcp" is needed: `+
			"set MC_FORCE_TCP=1 in the peer's environment")
	}
	var protocol string
	if json.Unmarshal(encoded, &protocol) != nil {
		protocol = string(encoded)
	} else if strings.Contains(protocol, " ") { // a sentence: see Server.refuse
		return status.Errorf(status.RejectHandshake, "the peer refuses this engine, and says %.300q", protocol)
	}
	return status.Errorf(status.NotSupportedTransport, `the segment's protocol is %.80q, where "tcp" is needed`, protocol)
}

// protoVersion is at least 1. Versions that are not known yet are kept: frames of version 2 are used with them.
func protoVersion(sent *int64) int {
	if sent == nil || *sent < 1 {
		return 1
	}
	return int(min(*sent, math.MaxInt32))
}

// BuildIndex prepares Contains for the buffers as they are now. ParseDescriptor has done it.
func (d *Descriptor) BuildIndex() {
	order := make([]extent, len(d.Buffers))
	for i, b := range d.Buffers {
		order[i] = extent{addr: b.Addr, widest: i}
	}
	slices.SortFunc(order, func(a, b extent) int { return cmp.Compare(a.addr, b.addr) })
	for i := 1; i < len(order); i++ {
		if d.last(order[i-1].widest) > d.last(order[i].widest) {
			order[i].widest = order[i-1].widest
		}
	}
	d.extents = order
	d.restricted = slices.ContainsFunc(d.Buffers, func(b Buffer) bool { return b.Access != ReadWrite })
}

// IsRestricted reports whether there is a buffer that peers may only read, or only write. It needs BuildIndex, as Contains does.
func (d *Descriptor) IsRestricted() bool { return d.restricted }

// last is the address of a buffer's last byte.
func (d *Descriptor) last(buffer int) uint64 {
	return d.Buffers[buffer].Addr + d.Buffers[buffer].Length - 1
}

// Contains returns a buffer that holds all of [addr, addr+length), if one does. No buffer holds an empty range or one
// that wraps around. It takes logarithmic time and needs BuildIndex once before; any number of goroutines may call it.
func (d *Descriptor) Contains(addr, length uint64) (Buffer, bool) {
	if length == 0 || length-1 > math.MaxUint64-addr {
		return Buffer{}, false
	}
	after := sort.Search(len(d.extents), func(i int) bool { return d.extents[i].addr > addr })
	if after == 0 {
		return Buffer{}, false
	}
	widest := d.extents[after-1].widest
	if d.last(widest) < addr+length-1 {
		return Buffer{}, false
	}
	return d.Buffers[widest], true
}

// CopiesEachRun reports whether the buffer is on a device that makes a copy for each run of strided memory: an NPU. Other devices
// and processors take a request as a whole.
func (b *Buffer) CopiesEachRun() bool { return strings.HasPrefix(b.Name, "npu") }

func isNull(encoded []byte) bool {
	return string(bytes.TrimSpace(encoded)) == "null"
}

func malformed(format string, args ...any) error {
	return status.Errorf(status.MalformedJSON, format, args...)
}

// jsonError says what encoding/json found wrong with what, in the words of JSON.
func jsonError(what string, err error) error {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) && wrongType.Field != "" {
		return malformed("%s: %s must not be a JSON %.40s", what, wrongType.Field, wrongType.Value)
	}
	return malformed("%s is not the JSON that it should be: %w", what, err)
}

// orAbsent is a number for an error's text.
func orAbsent(n *int64) any {
	if n == nil {
		return "(absent)"
	}
	return *n
}
