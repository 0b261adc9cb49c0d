package wire

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"
)

// A data connection between two kvferry engines begins with a hello in each direction:
//
//  1. The initiator sends its hello: its own identity, the number of the connection, the engine that it wants to reach, and
//     perhaps the number of a former connection that is to be over. It sends nothing else before it has the answer.
//  2. The target answers with its own identity, whether it accepts the hello, and for how long it has listened. Another
//     engine, or one without the extension, answers otherwise, and the initiator closes the connection.
//  3. Where the hello names a former connection, the answer says that the session of that connection has ended: nothing
//     that was sent on it is applied from then on.
//  4. On one host the hello brings a permit to copy from the initiator's memory, and the answer says whether the target
//     accepts it.
//
// A hello has the shape of a request of 0 bytes. An engine without the extension rejects such a request and touches no memory.
//
//	hello    u64 0 · u64 helloMagic · u8 opHello · u8 version · u16 0 · u32 length of what follows ·
//	         16 bytes origin · u64 number · 16 bytes target · u64 ends · u64 address of the permit
//	answer   status frame · u32 version · u32 length of what follows · 16 bytes target · u64 flags ·
//	         u64 age in nanoseconds
//
// A later version adds fields to the end. A reader ignores the bytes that it does not know.
const (
	// HelloVersion is the highest version of the hello that this package speaks.
	HelloVersion = 1
	helloMagic   = 0x016f6c6c65486b76 // "vkHello" and a byte of 1
	opHello      = 0x82
	HelloBody    = 56
	HelloSize    = HeaderSize + HelloBody
	MaxHelloBody = 4096

	answerHeader = StatusSize + 8
	answerBody   = 32
	answerSize   = answerHeader + answerBody

	// AnswerPermit is set in the flags of an answer when the target copies by the permit.
	AnswerPermit = 1
	// AnswerStrided is set in the flags of an answer of a target that takes strided requests.
	AnswerStrided = 2
)

// Identity is 16 random bytes that stand for one incarnation of an engine.
type Identity [16]byte

func (i Identity) String() string { return hex.EncodeToString(i[:]) }

// ParseIdentity reads the hexadecimal form. The caller has checked it.
func ParseIdentity(text string) (i Identity) {
	_, _ = hex.Decode(i[:], []byte(text))
	return i
}

// Hello is the first message of an initiator on a connection.
type Hello struct {
	Origin   Identity // the initiator, under a name that only its targets learn
	Number   uint64   // of the connection among those of the initiator; never 0
	Target   Identity // the engine that the initiator wants to reach
	Ends     uint64   // number of a former connection that the target ends before it answers; 0 for none
	PermitAt uint64   // address of the permit in the initiator's process; 0 for none
}

// Encode returns the bytes of a hello.
func (h *Hello) Encode() []byte {
	b := make([]byte, HelloSize)
	binary.LittleEndian.PutUint64(b[8:], helloMagic)
	b[16], b[17] = opHello, HelloVersion
	binary.LittleEndian.PutUint32(b[20:], HelloBody)
	body := b[HeaderSize:]
	copy(body, h.Origin[:])
	binary.LittleEndian.PutUint64(body[16:], h.Number)
	copy(body[24:], h.Target[:])
	binary.LittleEndian.PutUint64(body[40:], h.Ends)
	binary.LittleEndian.PutUint64(body[48:], h.PermitAt)
	return b
}

// IsHello reports whether the first HeaderSize bytes of b begin a hello.
func IsHello(b []byte) bool {
	return binary.LittleEndian.Uint64(b) == 0 && binary.LittleEndian.Uint64(b[8:]) == helloMagic && b[16] == opHello
}

// HelloRest returns how many bytes of a hello follow its first HeaderSize bytes. It fails for a length that no hello has.
func HelloRest(b []byte) (int, error) {
	length := binary.LittleEndian.Uint32(b[20:])
	if length < HelloBody || length > MaxHelloBody {
		return 0, fmt.Errorf("a hello of %d bytes, which is not between %d and %d", length, HelloBody, MaxHelloBody)
	}
	return int(length), nil
}

// ParseHello reads the bytes of a hello that follow its first HeaderSize bytes.
func ParseHello(body []byte) (h Hello, err error) {
	copy(h.Origin[:], body)
	h.Number = binary.LittleEndian.Uint64(body[16:])
	copy(h.Target[:], body[24:])
	h.Ends = binary.LittleEndian.Uint64(body[40:])
	h.PermitAt = binary.LittleEndian.Uint64(body[48:])
	if h.Number == 0 {
		return h, errors.New("a hello without a number of the connection")
	}
	return h, nil
}

// Answer is a target's answer to a hello.
type Answer struct {
	Code   uint32
	Target Identity // the engine that answers
	Flags  uint64
	Age    time.Duration // for how long it has listened
}

// Encode returns the bytes of an answer.
func (a *Answer) Encode() []byte {
	b := make([]byte, answerSize)
	PutStatus(b, a.Code)
	binary.LittleEndian.PutUint32(b[StatusSize:], HelloVersion)
	binary.LittleEndian.PutUint32(b[StatusSize+4:], answerBody)
	copy(b[answerHeader:], a.Target[:])
	binary.LittleEndian.PutUint64(b[answerHeader+16:], a.Flags)
	binary.LittleEndian.PutUint64(b[answerHeader+24:], uint64(a.Age))
	return b
}

// ReadAnswer receives a whole answer.
func ReadAnswer(from io.Reader) (a Answer, err error) {
	b := make([]byte, answerHeader+MaxHelloBody)
	if _, err = io.ReadFull(from, b[:StatusSize]); err != nil {
		return a, err
	}
	if a.Code, err = ParseStatus(b); err != nil {
		return a, err
	}
	if _, err = io.ReadFull(from, b[StatusSize:answerHeader]); err != nil {
		return a, err
	}
	length := binary.LittleEndian.Uint32(b[StatusSize+4:])
	if length < answerBody || length > MaxHelloBody {
		return a, fmt.Errorf("an answer of %d bytes to a hello, which is not between %d and %d", length, answerBody, MaxHelloBody)
	}
	if _, err = io.ReadFull(from, b[answerHeader:answerHeader+length]); err != nil {
		return a, err
	}
	copy(a.Target[:], b[answerHeader:])
	a.Flags = binary.LittleEndian.Uint64(b[answerHeader+16:])
	a.Age = max(0, time.Duration(binary.LittleEndian.Uint64(b[answerHeader+24:])))
	return a, nil
}
