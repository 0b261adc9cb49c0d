package core

import "kvferry/core/status"

// Scatter is requests with one opcode, given as blocks of regions that both sides know: first the blocks of the first region, then
// those of the next. A block is at an offset in the region on each side, and within its capacity.
type Scatter struct {
	Opcode        Opcode
	Regions       []ScatterRegion
	LocalOffsets  []uint64 // bytes, one for each block of all regions, as the two that follow
	RemoteOffsets []uint64
	Lengths       []uint64
}

// ScatterRegion is memory of this process, and of the segment's owner. Its memory layout is that of a row of the C interface:
// five uint64_t.
type ScatterRegion struct {
	LocalBase      uint64
	LocalCapacity  uint64 // bytes
	RemoteBase     uint64
	RemoteCapacity uint64 // bytes
	Blocks         uint64 // how many of the blocks are the region's
}

// SubmitScatter makes a batch and submits all requests to it, for the segment of that name. The slices of s are not kept. A segment
// that is not open is opened first, after the call has returned. If that fails, the batch fails. On an error there is no batch.
func (e *Engine) SubmitScatter(name string, s *Scatter) (*Batch, error) {
	a, err := s.arrays()
	if err != nil {
		return nil, err
	}
	id, open, err := e.Opened(name)
	if err != nil {
		return nil, err
	}
	b, err := e.AllocateBatch(len(a.Local))
	if err != nil {
		return nil, err
	}
	switch {
	case len(a.Local) == 0: // the batch has ended
	case open:
		a.Target = id
		err = e.SubmitArrays(b, a, nil)
	default:
		err = e.feedBatch(b, len(a.Local), a.local(), func(f *feed) (err error) {
			if a.Target, err = e.openFor(f, name); err != nil {
				return err
			}
			return e.SubmitArrays(b, a, nil)
		})
	}
	if err != nil {
		return nil, inOrder(err, e.FreeBatch(b))
	}
	return b, nil
}

// arrays are the requests with their addresses, without the segment's id.
func (s *Scatter) arrays() (*Arrays, error) {
	count := len(s.Lengths)
	if len(s.LocalOffsets) != count || len(s.RemoteOffsets) != count {
		return nil, status.Errorf(status.InvalidArgument, "%d local offsets, %d remote offsets and %d lengths do not match",
			len(s.LocalOffsets), len(s.RemoteOffsets), count)
	}
	a := &Arrays{Opcode: s.Opcode, Local: make([]uint64, count), Remote: make([]uint64, count), Lengths: make([]uint64, count)}
	copy(a.Lengths, s.Lengths)
	first := 0
	for i, r := range s.Regions {
		if r.Blocks > uint64(count-first) {
			return nil, status.Errorf(status.InvalidArgument, "region %d has %d blocks, where %d are left", i, r.Blocks, count-first)
		}
		for end := first + int(r.Blocks); first < end; first++ {
			local, remote, length := s.LocalOffsets[first], s.RemoteOffsets[first], s.Lengths[first]
			if !within(r.LocalBase, r.LocalCapacity, local, length) || !within(r.RemoteBase, r.RemoteCapacity, remote, length) {
				return nil, status.Errorf(status.InvalidArgument,
					"region %d: %d bytes at offsets %d and %d lie outside its capacities, %d bytes at %#x and %d bytes at %#x of the peer",
					i, length, local, remote, r.LocalCapacity, r.LocalBase, r.RemoteCapacity, r.RemoteBase)
			}
			a.Local[first], a.Remote[first] = r.LocalBase+local, r.RemoteBase+remote
		}
	}
	if first < count {
		return nil, status.Errorf(status.InvalidArgument, "%d blocks belong to no region", count-first)
	}
	return a, nil
}

// within reports whether a block lies in [base, base+capacity), which must not wrap around.
func within(base, capacity, offset, length uint64) bool {
	return base+capacity >= base && offset <= capacity && length <= capacity-offset
}
