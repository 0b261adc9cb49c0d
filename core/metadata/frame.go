package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"kvferry/core/security"
	"kvferry/core/status"
)

// A handshake frame is
//
//	u64 length, little-endian · u8 kind · length-1 bytes of JSON
//
// The length counts the kind. In an older form there is no kind, and the first byte, which is above the known kinds, is
// the first one of the JSON. Such a frame is of the kind "connection", and is answered in the same form.

// frameKind is what a handshake frame asks for, or answers.
type frameKind byte

const (
	kindConnection frameKind = 0 // RDMA handshake
	kindMetadata   frameKind = 1 // segment descriptor
	kindNotify     frameKind = 2
	kindProbe      frameKind = 3
	unknownKind    frameKind = 4 // and above
)

func (k frameKind) String() string {
	switch k {
	case kindConnection:
		return "connection"
	case kindMetadata:
		return "metadata"
	case kindNotify:
		return "notify"
	case kindProbe:
		return "probe"
	}
	return "unknown"
}

// DefaultMaxLength is the frame length that every Mooncake peer takes, in bytes, the kind included.
const DefaultMaxLength = 1 << 20

// errNoFrame is returned by readFrame when the stream ends before a frame's first byte.
var errNoFrame = errors.New("closed without sending a frame")

// errNothingSent is in the error of readFrame when the stream fails before a frame's first byte.
var errNothingSent = errors.New("no byte of a frame arrived")

// frame is a frame whose body has not been read yet.
type frame struct {
	kind   frameKind
	old    bool      // of the form without a kind; kind is kindConnection then
	length int       // of the JSON, in bytes
	body   io.Reader // the JSON, and no more
}

// readFrame reads length and kind. It refuses a frame whose length is 0 or over maxLength.
func readFrame(r io.Reader, maxLength int) (frame, error) {
	var header [9]byte
	if n, err := io.ReadFull(r, header[:8]); err == io.EOF {
		return frame{}, errNoFrame
	} else if err != nil && n == 0 {
		return frame{}, status.Errorf(status.Socket, "%w: %w", errNothingSent, err)
	} else if err != nil {
		return frame{}, status.Errorf(status.Socket, "%d of the 8 bytes of a frame's length: %w", n, err)
	}
	if security.IsClientHello(header[:8]) {
		return frame{}, status.Errorf(status.RejectHandshake, "%w", security.ErrUnexpectedTLS)
	}
	if isHTTP(header[:8]) {
		return frame{}, malformed("it is HTTP, which an engine does not speak: the port of another program was named")
	}
	length := binary.LittleEndian.Uint64(header[:8])
	if length == 0 || length > uint64(maxLength) {
		return frame{}, malformed("frame length %d is not within 1 to %d (MC_HANDSHAKE_MAX_LENGTH)", length, maxLength)
	}
	if _, err := io.ReadFull(r, header[8:]); err != nil {
		return frame{}, status.Errorf(status.Socket, "a frame's length and no more: %w", err)
	}
	rest := io.LimitReader(r, int64(length)-1)
	if header[8] > byte(kindProbe) {
		return frame{kind: kindConnection, old: true, length: int(length), body: io.MultiReader(bytes.NewReader(header[8:]), rest)}, nil
	}
	return frame{kind: frameKind(header[8]), length: int(length) - 1, body: rest}, nil
}

// isHTTP reports whether bytes are the beginning of an HTTP answer or of a common HTTP request. As the length of a frame they
// would be far beyond every limit.
func isHTTP(start []byte) bool {
	for _, prefix := range []string{"HTTP/", "GET ", "HEAD ", "POST ", "PUT ", "OPTIONS "} {
		if bytes.HasPrefix(start, []byte(prefix)) {
			return true
		}
	}
	return false
}

// readBody reads the rest of a frame. Memory grows with what arrives, not with what the length announced.
func (f frame) readBody() ([]byte, error) {
	body, err := io.ReadAll(f.body)
	return body, f.checkRead(int64(len(body)), err)
}

// discardBody reads the rest of a frame and discards it.
func (f frame) discardBody() error {
	n, err := io.Copy(io.Discard, f.body)
	return f.checkRead(n, err)
}

func (f frame) checkRead(n int64, err error) error {
	if err == nil && n < int64(f.length) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return status.Errorf(status.Socket, "%d of the %d bytes of a frame's JSON: %w", n, f.length, err)
	}
	return nil
}

// encodeFrame puts length and kind before the JSON; with old, in the form without a kind.
func encodeFrame(kind frameKind, old bool, body []byte) []byte {
	length := len(body) + 1
	if old {
		length--
	}
	encoded := make([]byte, 0, 8+length)
	encoded = binary.LittleEndian.AppendUint64(encoded, uint64(length))
	if !old {
		encoded = append(encoded, byte(kind))
	}
	return append(encoded, body...)
}
