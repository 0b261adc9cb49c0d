// Package wire turns the frames of the data port, and the hello that connections between engines begin with, into bytes and back.
package wire

import (
	"encoding/binary"
	"fmt"
)

// The frames of the data port. All integers are little-endian.
//
//	request  u64 size · u64 addr · u8 opcode · 7 bytes of padding
//	status   u64: statusMagic in the high half, the code in the low half
//	grant    u64 addr · u64 size · u64 addr of the epoch · u64 epoch
//
// A WRITE's payload follows its request. A READ's payload follows its status (version 2) or stands alone (version 1).
// Engines on the same host also send requests by address, in version 2. A WRITE by address has the initiator's address in
// place of the padding, and no payload. A READ by address is answered with a status and a grant: the region that holds the
// range. A grant after a status other than StatusOK is all zeros.
const (
	HeaderSize = 24
	StatusSize = 8
	GrantSize  = 32

	// ProtoV2 is set in the opcode byte of a request that asks for a status frame.
	ProtoV2 = 0x80
	// byAddress is also set in the opcode byte of a request by address.
	byAddress = 0x40
	// MaxSource is above every address that a WRITE by address can name. No process has memory there.
	MaxSource = 1 << 56

	statusMagic = 0x4D435456 // "MCTV"
)

// Opcode is a request's opcode byte without its flags.
type Opcode byte

const (
	Read  Opcode = 0
	Write Opcode = 1
)

func (o Opcode) String() string {
	if o == Read {
		return "READ"
	}
	return "WRITE"
}

// Codes of a status frame. Mooncake takes every code except StatusOK for a rejection.
const (
	StatusOK       = 0
	StatusRejected = 1 // the range does not lie in one region of the target that is open to peers
	StatusFailed   = 2 // the target could not move the bytes between its device and the network

	// StatusOutOfReach answers a request by address that the initiator is to send again with its payload. Nothing else is
	// wrong.
	StatusOutOfReach = 3

	StatusOtherEngine = 4 // answers a hello that was meant for another engine
	StatusNotEnded    = 5 // answers a hello: the former connection has not ended yet, and the initiator may ask again

	// StatusInaccessible is for a range that is registered, but whose memory does not exist any more.
	StatusInaccessible = 6

	StatusDemandsTLS = 7 // answers a hello without TLS, which the target demands

	// StatusForbidden is for a range of one region that peers may only read, or only write.
	StatusForbidden = 8

	// These answer a strided request with a key. The target has no offer with that key any more; the offer does not cover the
	// request; or it was for one transfer, and another one has used it.
	StatusRevoked    = 9
	StatusNotOffered = 10
	StatusOfferUsed  = 11
)

// Header is a parsed request.
type Header struct {
	Op     Opcode
	V2     bool
	Addr   uint64 // in the target's address space
	Length uint64 // payload bytes; not yet checked against anything

	ByAddress bool
	Source    uint64 // address of the payload of a WRITE by address, in the initiator's address space

	Strided bool // a body follows, see ParseStrided
	Axes    int  // of a strided request
}

// PutHeader writes a request into the first HeaderSize bytes of b.
func PutHeader(b []byte, op Opcode, addr, length uint64, v2 bool) {
	code := op
	if v2 {
		code |= ProtoV2
	}
	binary.LittleEndian.PutUint64(b[0:], length)
	binary.LittleEndian.PutUint64(b[8:], addr)
	binary.LittleEndian.PutUint64(b[16:], uint64(code)) // zeroes the padding
}

// PutHeaderByAddress writes a request by address. source is the address of the payload of a WRITE, below MaxSource.
func PutHeaderByAddress(b []byte, op Opcode, addr, length, source uint64) {
	PutHeader(b, op, addr, length, true)
	b[16] |= byAddress
	if op == Write {
		binary.LittleEndian.PutUint64(b[16:], source<<8|uint64(b[16]))
	}
}

// ParseHeader reads a request from the first HeaderSize bytes of b. It ignores the padding, because older peers leave heap
// garbage there. Only an initiator on the same host may send requests by address. An error means that the opcode does not
// exist; the stream cannot be followed after it.
func ParseHeader(b []byte, sameHost bool) (Header, error) {
	code := Opcode(b[16])
	h := Header{
		V2:     code&ProtoV2 != 0,
		Addr:   binary.LittleEndian.Uint64(b[8:]),
		Length: binary.LittleEndian.Uint64(b[0:]),
	}
	if sameHost && h.V2 && code&byAddress != 0 {
		h.ByAddress, h.Source = true, binary.LittleEndian.Uint64(b[16:])>>8
		code &^= byAddress
	}
	if h.V2 && !h.ByAddress && code&strided != 0 {
		h.Strided, h.Axes = true, int(b[17])
		code &^= strided
		if h.Axes > MaxAxes {
			return Header{}, fmt.Errorf("a strided request with %d axes, where %d is the most", h.Axes, MaxAxes)
		}
	}
	h.Op = code &^ ProtoV2
	if h.Op != Read && h.Op != Write {
		return Header{}, fmt.Errorf("unknown opcode %#02x in the request header % x", b[16], b[:HeaderSize])
	}
	return h, nil
}

// Grant is a region that an initiator on the same host may read for as long as its epoch has not changed.
type Grant struct {
	Addr, Length uint64
	EpochAt      uint64 // address of the epoch
	Epoch        uint64
}

// Holds reports whether length bytes from addr on, at least one of them, lie in the region.
func (g *Grant) Holds(addr, length uint64) bool {
	skip := addr - g.Addr // large where addr is below the region
	return length > 0 && skip < g.Length && length <= g.Length-skip
}

// PutGrant writes a grant into the first GrantSize bytes of b.
func PutGrant(b []byte, g Grant) {
	for i, v := range []uint64{g.Addr, g.Length, g.EpochAt, g.Epoch} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
}

// ParseGrant reads a grant from the first GrantSize bytes of b.
func ParseGrant(b []byte) Grant {
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	return Grant{Addr: word(0), Length: word(1), EpochAt: word(2), Epoch: word(3)}
}

// PutStatus writes a status frame into the first StatusSize bytes of b.
func PutStatus(b []byte, code uint32) {
	binary.LittleEndian.PutUint64(b, statusMagic<<32|uint64(code))
}

// ParseStatus reads a status frame from the first StatusSize bytes of b. An error means that the magic number is wrong; the
// stream cannot be followed after it.
func ParseStatus(b []byte) (code uint32, err error) {
	v := binary.LittleEndian.Uint64(b)
	if v>>32 != statusMagic {
		return 0, fmt.Errorf("bad magic number in the status frame % x", b[:StatusSize])
	}
	return uint32(v), nil
}
