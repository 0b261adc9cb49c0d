package tcp

import (
	"encoding/binary"
	"fmt"

	"kvferry/core"
)

// The frames of the data port. All integers are little-endian.
//
//	request  u64 size · u64 addr · u8 opcode · 7 bytes of padding
//	status   u64: statusMagic in the high half, the code in the low half
//	grant    u64 addr · u64 size · u64 addr of the epoch · u64 epoch
//
// A WRITE's payload follows its request; a READ's follows its status (version 2) or stands alone (version 1). Between
// neighbours there are requests by address, too, in version 2: a WRITE has the initiator's address in place of the
// padding, and no payload; a READ is answered with a status and a grant, the region that the range is in. A grant after
// another status than statusOK is all zeros.
const (
	headerSize = 24
	statusSize = 8
	grantSize  = 32

	// protoV2 is set in the opcode byte of a request that wants a status frame.
	protoV2 = 0x80
	// byAddress is set, too, in one that comes or goes without payload.
	byAddress = 0x40
	// maxSource is above every address that a WRITE by address can name. No process has memory there.
	maxSource = 1 << 56

	statusMagic = 0x4D435456 // "MCTV"
)

// opcode is a request's opcode byte without protoV2.
type opcode byte

const (
	opRead  opcode = 0
	opWrite opcode = 1
)

// Codes of a status frame. Mooncake takes every code but statusOK for a rejection.
const (
	statusOK       = 0
	statusRejected = 1 // the range is not in one remotely accessible region of the target
	statusFailed   = 2 // the target could not move the bytes between its device and the network

	// statusOutOfReach answers a request by address that is to be sent with its payload instead. Nothing else is wrong.
	statusOutOfReach = 3

	// statusInaccessible is for a range that is registered, and whose memory is not there any more. 4 and 5 answer a hello.
	statusInaccessible = 6
)

// header is a parsed request.
type header struct {
	op     core.Opcode
	v2     bool
	addr   uint64 // in the target's address space
	length uint64 // payload bytes; not yet checked against anything

	byAddress bool
	source    uint64 // where a WRITE by address has its payload, in the initiator's address space
}

// putHeader writes a request into the first headerSize bytes of b.
func putHeader(b []byte, op core.Opcode, addr, length uint64, v2 bool) {
	code := opRead
	if op == core.Write {
		code = opWrite
	}
	if v2 {
		code |= protoV2
	}
	binary.LittleEndian.PutUint64(b[0:], length)
	binary.LittleEndian.PutUint64(b[8:], addr)
	binary.LittleEndian.PutUint64(b[16:], uint64(code)) // zeroes the padding
}

// putHeaderByAddress writes the request of a piece by address. Its local memory is below maxSource.
func putHeaderByAddress(b []byte, p *piece) {
	putHeader(b, p.op, p.remote, p.length, true)
	b[16] |= byAddress
	if p.op == core.Write {
		binary.LittleEndian.PutUint64(b[16:], uint64(p.local)<<8|uint64(b[16]))
	}
}

// parseHeader reads a request from the first headerSize bytes of b. The padding is ignored: older peers leave heap
// garbage there. Only a neighbour may send requests by address. The error is for an opcode that does not exist, after
// which the stream cannot be followed.
func parseHeader(b []byte, neighbour bool) (header, error) {
	code := opcode(b[16])
	h := header{
		v2:     code&protoV2 != 0,
		addr:   binary.LittleEndian.Uint64(b[8:]),
		length: binary.LittleEndian.Uint64(b[0:]),
	}
	if neighbour && h.v2 && code&byAddress != 0 {
		h.byAddress, h.source = true, binary.LittleEndian.Uint64(b[16:])>>8
		code &^= byAddress
	}
	switch code &^ protoV2 {
	case opRead:
		h.op = core.Read
	case opWrite:
		h.op = core.Write
	default:
		return header{}, fmt.Errorf("unknown opcode %#02x in the request header % x", b[16], b[:headerSize])
	}
	return h, nil
}

// grant is a region that a neighbour may read, as long as its epoch has not changed.
type grant struct {
	addr, length uint64
	epochAt      uint64 // address of the epoch
	epoch        uint64
}

func (g *grant) holds(addr, length uint64) bool {
	return core.Range{Addr: uintptr(g.addr), Length: g.length}.Holds(addr, length)
}

// proof shows that memory was copied from the region's process before the grant ended.
func (g *grant) proof() proof {
	p := proof{at: uintptr(g.epochAt), length: 8}
	binary.NativeEndian.PutUint64(p.expected[:], g.epoch)
	return p
}

// putGrant writes a grant into the first grantSize bytes of b.
func putGrant(b []byte, g grant) {
	for i, v := range []uint64{g.addr, g.length, g.epochAt, g.epoch} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
}

// parseGrant reads a grant from the first grantSize bytes of b.
func parseGrant(b []byte) grant {
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	return grant{addr: word(0), length: word(1), epochAt: word(2), epoch: word(3)}
}

// putStatus writes a status frame into the first statusSize bytes of b.
func putStatus(b []byte, code uint32) {
	binary.LittleEndian.PutUint64(b, statusMagic<<32|uint64(code))
}

// parseStatus reads a status frame from the first statusSize bytes of b. The error is for a bad magic number, after
// which the stream cannot be followed.
func parseStatus(b []byte) (code uint32, err error) {
	v := binary.LittleEndian.Uint64(b)
	if v>>32 != statusMagic {
		return 0, fmt.Errorf("bad magic number in the status frame % x", b[:statusSize])
	}
	return uint32(v), nil
}
