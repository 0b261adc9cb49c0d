package core

import (
	"kvferry/core/metadata"
)

// Description is what a segment's descriptor says.
type Description struct {
	Name         string            `json:"name"`
	Kind         string            `json:"kind"`         // of its owner: kvferry or mooncake
	Address      string            `json:"address"`      // host:port of the owner's handshake port
	Data         string            `json:"data_address"` // host:port of the owner's data port
	Identity     string            `json:"identity"`     // of the owner's incarnation; "" where it has none, as Mooncake's
	ProtoVersion int               `json:"proto_version"`
	TLS          bool              `json:"tls"`
	SameHost     bool              `json:"same_host_socket"` // the owner has a socket for peers on the same host
	Buffers      []DescribedBuffer `json:"buffers"`
	Truncated    bool              `json:"truncated"` // there are more buffers than these
}

// DescribedBuffer is registered memory of a segment.
type DescribedBuffer struct {
	Address  uint64 `json:"address"`
	Length   uint64 `json:"length"`   // bytes
	Location string `json:"location"` // as "cpu:0"
	Access   string `json:"access"`   // what peers may do with it: read-write, read or write
}

// Describe fetches the descriptor of a segment as it is now. The segment is opened.
func (e *Engine) Describe(name string) (*Description, error) {
	id, err := e.OpenSegmentNoCache(name)
	if err != nil {
		return nil, err
	}
	if id == LocalSegment {
		return describe(e.Descriptor(), e.Address()), nil
	}
	s, err := e.segment(id)
	if err != nil {
		return nil, err
	}
	at, err := e.store.HandshakeAddress(e.ctx, s.Name)
	if err != nil {
		return nil, err
	}
	return describe(s.Descriptor(), at), nil
}

func describe(d *metadata.Descriptor, at string) *Description {
	described := &Description{
		Name: d.Name, Kind: d.Kind(), Address: at, Data: d.DataAddress(at), Identity: d.Identity, ProtoVersion: d.ProtoVersion,
		TLS: d.TLS > 0, SameHost: d.SameHostSocket != "", Buffers: make([]DescribedBuffer, len(d.Buffers)), Truncated: d.Truncated,
	}
	for i, b := range d.Buffers {
		access := string(b.Access)
		if b.Access == metadata.ReadWrite {
			access = "read-write"
		}
		described.Buffers[i] = DescribedBuffer{Address: b.Addr, Length: b.Length, Location: b.Name, Access: access}
	}
	return described
}
