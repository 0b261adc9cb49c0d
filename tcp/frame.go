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
//
// A WRITE's payload follows its request; a READ's follows its status (version 2) or stands alone (version 1).
const (
	headerSize = 24
	statusSize = 8

	// protoV2 is set in the opcode byte of a request that wants a status frame.
	protoV2 = 0x80

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
)

// header is a parsed request.
type header struct {
	op     core.Opcode
	v2     bool
	addr   uint64 // in the target's address space
	length uint64 // payload bytes; not yet checked against anything
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

// parseHeader reads a request from the first headerSize bytes of b. The padding is ignored: older peers leave heap
// garbage there. The error is for an opcode that does not exist, after which the stream cannot be followed.
func parseHeader(b []byte) (header, error) {
	code := opcode(b[16])
	h := header{
		v2:     code&protoV2 != 0,
		addr:   binary.LittleEndian.Uint64(b[8:]),
		length: binary.LittleEndian.Uint64(b[0:]),
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
