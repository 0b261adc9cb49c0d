package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// A strided request moves runs of bytes of one length from or to regular places of the target. Only engines whose answer to
// the hello has AnswerStrided in its flags take it.
//
//	header   as of a request of version 2. The size is that of all runs together, and the address that of the first run. In
//	         place of the padding: u8 number of axes · 6 bytes of zeros
//	body     16 bytes key of an offer, or zeros · u64 id of the transfer · u64 bytes of a run ·
//	         for each axis, the outermost first: u64 count · i64 bytes from one time to the next
//
// There is a run for each combination of indices of the axes. The payload is the runs one behind the other, the index of the
// innermost axis running fastest. It follows where that of a request of version 2 does. The id is random, and the same for all
// requests of a transfer, those that are sent again included: a target tells one use of an offer from another by it.
const (
	// strided is set in the opcode byte of a strided request.
	strided = 0x20
	// MaxAxes is how many axes a strided request has at most.
	MaxAxes = 5
	// MaxStrided is the most payload of a strided request with axes. A target has memory for so much.
	MaxStrided = 256 << 10

	stridedBody = 32
	axisSize    = 16
	// MaxStridedBody is the longest body of a strided request.
	MaxStridedBody = stridedBody + MaxAxes*axisSize
)

// Key stands for an offer. It is random; only the engines that were given the offer know it.
type Key [16]byte

// Axis is how often runs repeat in one direction, and the bytes from one time to the next.
type Axis struct {
	Count  uint64
	Stride int64
}

// Strided is the body of a strided request.
type Strided struct {
	Key  Key
	ID   uint64 // of the transfer that the request is a part of
	Run  uint64 // bytes
	Axes [MaxAxes]Axis
}

// StridedBody is how many bytes the body of a request with so many axes has.
func StridedBody(axes int) int { return stridedBody + axes*axisSize }

// PutStrided writes a strided request into the first HeaderSize + StridedBody(axes) bytes of b. length is the payload's.
func PutStrided(b []byte, op Opcode, addr, length uint64, s *Strided, axes int) {
	PutHeader(b, op, addr, length, true)
	b[16] |= strided
	b[17] = byte(axes)
	body := b[HeaderSize:]
	copy(body, s.Key[:])
	binary.LittleEndian.PutUint64(body[16:], s.ID)
	binary.LittleEndian.PutUint64(body[24:], s.Run)
	for i, a := range s.Axes[:axes] {
		at := body[stridedBody+i*axisSize:]
		binary.LittleEndian.PutUint64(at, a.Count)
		binary.LittleEndian.PutUint64(at[8:], uint64(a.Stride))
	}
}

// ParseStrided reads the body of a strided request from the first StridedBody(h.Axes) bytes of b, and checks it: the runs
// have the size that the header says, none of them wraps around the address space, and there are no more bytes of them than
// a target takes. low and span are the memory that the runs lie in, with the gaps between them.
func (h *Header) ParseStrided(b []byte) (s Strided, low, span uint64, err error) {
	copy(s.Key[:], b)
	s.ID, s.Run = binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	total, below, above := s.Run, uint64(0), s.Run
	for i := range h.Axes {
		at := b[stridedBody+i*axisSize:]
		a := Axis{binary.LittleEndian.Uint64(at), int64(binary.LittleEndian.Uint64(at[8:]))}
		s.Axes[i] = a
		var over uint64
		if over, total = bits.Mul64(total, a.Count); over != 0 || total == 0 {
			return s, 0, 0, fmt.Errorf("runs of %d bytes in %d axes, of which axis %d repeats %d times", s.Run, h.Axes, i, a.Count)
		}
		length, side := uint64(a.Stride), &above
		if a.Stride < 0 {
			length, side = -length, &below
		}
		over, length = bits.Mul64(length, a.Count-1)
		end, carry := bits.Add64(*side, length, 0)
		if over != 0 || carry != 0 {
			return s, 0, 0, errWraps
		}
		*side = end
	}
	switch {
	case total != h.Length || total == 0:
		return s, 0, 0, fmt.Errorf("runs of %d bytes together, in a request of %d", total, h.Length)
	case h.Axes > 0 && total > MaxStrided:
		return s, 0, 0, fmt.Errorf("a strided request of %d bytes, where %d is the most", total, MaxStrided)
	case below > h.Addr || h.Addr+above < h.Addr || below+above < above:
		return s, 0, 0, errWraps
	}
	return s, h.Addr - below, below + above, nil
}

var errWraps = errors.New("the runs of a strided request wrap around the address space")
