package core

import (
	"iter"

	"kvferry/core/status"
)

// Opcode is the direction in which a request moves bytes. The values are those of the C interface.
type Opcode int32

const (
	Read  Opcode = 0 // from the segment into local memory
	Write Opcode = 1 // from local memory into the segment
)

func (o Opcode) String() string {
	if o == Read {
		return "READ"
	}
	return "WRITE"
}

// check says that an opcode is none.
func (o Opcode) check() error {
	if o != Read && o != Write {
		return status.Errorf(status.InvalidArgument, "opcode %d is neither READ nor WRITE", o)
	}
	return nil
}

// SegmentID names an opened segment.
type SegmentID int32

// LocalSegment is the engine's own segment.
const LocalSegment SegmentID = 0

// Request is one transfer. Its memory layout is that of the C interface's transfer_request_t.
type Request struct {
	Opcode Opcode
	Local  uintptr // address in this process
	Target SegmentID
	Remote uint64 // address in the segment's owner
	Length uint64 // bytes
}

// wraps reports whether one of the request's ranges goes beyond the end of the address space.
func (r *Request) wraps() bool {
	return uint64(r.Local)+r.Length < r.Length || r.Remote+r.Length < r.Length
}

// Arrays are requests with one opcode and segment: one request for each index of the arrays, which are of one length.
type Arrays struct {
	Opcode  Opcode
	Target  SegmentID
	Local   []uint64 // addresses in this process
	Remote  []uint64 // addresses in the segment's owner
	Lengths []uint64 // bytes
}

// local are the ranges of this process that the requests move.
func (a *Arrays) local() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for i, addr := range a.Local {
			if !yield(Range{Addr: uintptr(addr), Length: a.Lengths[i]}) {
				return
			}
		}
	}
}
