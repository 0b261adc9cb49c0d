package tcp

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"kvferry/core/metadata"
	"kvferry/core/status"

	"golang.org/x/sys/unix"
)

// A data connection between two engines of this kind begins with a hello in each direction:
//
//  1. The initiator sends its hello (greet): who it is, the number of the connection, which engine it wants to reach, and
//     perhaps which of its former connections is to be over. It sends nothing else before it has the answer.
//  2. The target answers (session_hello.go): who it is, whether it is the one, and for how long it has been there. A target
//     that is another engine, or none of this kind, answers otherwise, and the initiator closes the connection.
//  3. Where the hello names a former connection, the answer says that the session of that one has ended: nothing that was
//     sent on it is applied from then on.
//  4. On one host the hello brings a permit to copy from the initiator's memory (permit.go), and the answer says whether
//     the target accepts it.
//
// A hello has the shape of a request of 0 bytes, which an engine that knows no hello rejects without touching memory.
//
//	hello    u64 0 · u64 helloMagic · u8 opHello · u8 version · u16 0 · u32 length of what follows ·
//	         16 bytes origin · u64 number · 16 bytes target · u64 ends · u64 address of the permit
//	answer   status frame · u32 version · u32 length of what follows · 16 bytes target · u64 flags ·
//	         u64 age in nanoseconds
//
// What is longer than that is of a later version, which adds to the end; the rest is ignored.
const (
	helloVersion = 1
	helloMagic   = 0x016f6c6c65486b76 // "vkHello" and a byte of 1
	opHello      = 0x82
	helloBody    = 56
	helloSize    = headerSize + helloBody
	maxHelloBody = 4096

	answerHeader = statusSize + 8
	answerBody   = 32
	answerSize   = answerHeader + answerBody

	// answerPermit is set in the flags of an answer when the target copies by the permit.
	answerPermit = 1
)

// Codes of the status frame in an answer, beside statusOK.
const (
	statusOtherEngine = 4 // the hello was meant for another engine
	statusNotEnded    = 5 // the former connection has not ended yet; the initiator may ask again
)

// identity is 16 random bytes that stand for one incarnation of an engine.
type identity [16]byte

func (i identity) String() string { return hex.EncodeToString(i[:]) }

// parseIdentity reads the hexadecimal form, which metadata has checked.
func parseIdentity(text string) (i identity) {
	_, _ = hex.Decode(i[:], []byte(text))
	return i
}

// hello is what an initiator says first on a connection.
type hello struct {
	origin   identity // the initiator, under a name that only its targets learn
	number   uint64   // of the connection among those of the initiator; never 0
	target   identity // the engine that it is for
	ends     uint64   // number of a former connection that is to be over before the answer; 0 for none
	permitAt uint64   // where the initiator's process has the permit mapped that comes along; 0 for none
}

// encode gives the bytes of a hello.
func (h *hello) encode() []byte {
	b := make([]byte, helloSize)
	binary.LittleEndian.PutUint64(b[8:], helloMagic)
	b[16], b[17] = opHello, helloVersion
	binary.LittleEndian.PutUint32(b[20:], helloBody)
	body := b[headerSize:]
	copy(body, h.origin[:])
	binary.LittleEndian.PutUint64(body[16:], h.number)
	copy(body[24:], h.target[:])
	binary.LittleEndian.PutUint64(body[40:], h.ends)
	binary.LittleEndian.PutUint64(body[48:], h.permitAt)
	return b
}

// isHello reports whether the first headerSize bytes of b begin a hello.
func isHello(b []byte) bool {
	return binary.LittleEndian.Uint64(b) == 0 && binary.LittleEndian.Uint64(b[8:]) == helloMagic && b[16] == opHello
}

// helloRest is how many bytes follow the first headerSize ones of a hello. An error is for a length that none has.
func helloRest(b []byte) (int, error) {
	length := binary.LittleEndian.Uint32(b[20:])
	if length < helloBody || length > maxHelloBody {
		return 0, fmt.Errorf("a hello of %d bytes, which is not between %d and %d", length, helloBody, maxHelloBody)
	}
	return int(length), nil
}

// parseHello reads a hello without its first headerSize bytes.
func parseHello(body []byte) (h hello, err error) {
	copy(h.origin[:], body)
	h.number = binary.LittleEndian.Uint64(body[16:])
	copy(h.target[:], body[24:])
	h.ends = binary.LittleEndian.Uint64(body[40:])
	h.permitAt = binary.LittleEndian.Uint64(body[48:])
	if h.number == 0 {
		return h, errors.New("a hello without a number of the connection")
	}
	return h, nil
}

// helloAnswer is what a target answers.
type helloAnswer struct {
	code   uint32
	target identity // the engine that answers
	flags  uint64
	age    time.Duration // for how long it has listened
}

func (a *helloAnswer) encode() []byte {
	b := make([]byte, answerSize)
	putStatus(b, a.code)
	binary.LittleEndian.PutUint32(b[statusSize:], helloVersion)
	binary.LittleEndian.PutUint32(b[statusSize+4:], answerBody)
	copy(b[answerHeader:], a.target[:])
	binary.LittleEndian.PutUint64(b[answerHeader+16:], a.flags)
	binary.LittleEndian.PutUint64(b[answerHeader+24:], uint64(a.age))
	return b
}

// readAnswer receives an answer to the end.
func readAnswer(from io.Reader) (a helloAnswer, err error) {
	b := make([]byte, answerHeader+maxHelloBody)
	if _, err = io.ReadFull(from, b[:statusSize]); err != nil {
		return a, err
	}
	if a.code, err = parseStatus(b); err != nil {
		return a, err
	}
	if _, err = io.ReadFull(from, b[statusSize:answerHeader]); err != nil {
		return a, err
	}
	length := binary.LittleEndian.Uint32(b[statusSize+4:])
	if length < answerBody || length > maxHelloBody {
		return a, fmt.Errorf("an answer of %d bytes to a hello, which is not between %d and %d", length, answerBody, maxHelloBody)
	}
	if _, err = io.ReadFull(from, b[answerHeader:answerHeader+length]); err != nil {
		return a, err
	}
	copy(a.target[:], b[answerHeader:])
	a.flags = binary.LittleEndian.Uint64(b[answerHeader+16:])
	a.age = max(0, time.Duration(binary.LittleEndian.Uint64(b[answerHeader+24:])))
	return a, nil
}

// errOtherEngine is why a connection is of no use whose target is not the engine that it was made for.
var errOtherEngine = errors.New("another engine answered")

// errNotEnded is why a former connection is not known to be over.
var errNotEnded = errors.New("the target has not ended the former connection yet")

// greet says hello on a connection that has just been made, and returns the answer. permit, which may be nil, goes along by
// the file descriptor given with it. It gives up at the end of the context, and when the target does not answer for as long
// as it would be waited for with a request.
func (p *peer) greet(ctx context.Context, conn plainConn, d *metadata.Descriptor, h hello, permitFile int) (helloAnswer, error) {
	limit := answerLimit(p.transport.config)
	_ = conn.SetDeadline(time.Now().Add(limit.after))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	a, err := exchangeHello(conn, h, permitFile)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	_ = conn.SetDeadline(time.Time{})
	var late net.Error
	switch {
	case errors.As(err, &late) && late.Timeout() && ctx.Err() == nil:
		err = fmt.Errorf("no answer to the hello within %v: %w", limit, err)
	case err != nil:
		err = fmt.Errorf("engine %s was expected, and did not answer the hello: %w", d.Identity, err)
	case a.target != h.target:
		err = fmt.Errorf("engine %s was expected: %w, %s", d.Identity, errOtherEngine, p.transport.nameOf(a.target))
	case a.code == statusNotEnded:
		err = errNotEnded
	case a.code != statusOK:
		err = fmt.Errorf("engine %s refused the hello with status %d", d.Identity, a.code)
	default:
		return a, nil
	}
	return a, status.Errorf(status.Socket, "segment %q (%v): %w", p.segment.Name, conn.RemoteAddr(), err)
}

// nameOf names an engine for an error.
func (t *Transport) nameOf(i identity) string {
	if i == t.self {
		return i.String() + ", which is this engine itself"
	}
	return i.String()
}

func exchangeHello(conn plainConn, h hello, permitFile int) (helloAnswer, error) {
	var err error
	if local, ok := conn.(*net.UnixConn); ok && h.permitAt != 0 {
		_, _, err = local.WriteMsgUnix(h.encode(), unix.UnixRights(permitFile), nil)
	} else {
		_, err = conn.Write(h.encode())
	}
	if err != nil {
		return helloAnswer{}, err
	}
	return readAnswer(conn)
}
