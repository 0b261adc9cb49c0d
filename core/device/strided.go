package device

// Dimensions is how many a Strided has.
const Dimensions = 4

// Strided is the shape of many copies of one length, which lie at regular places on both sides. The copy (i, j, k, l) of the group
// that begins at a Base goes to Base.Dst + i*DstStrides[0] + j*DstStrides[1] + ..., from where the other strides say; i is below
// Counts[0], and so on. The last dimension varies fastest: neighbouring threads of a kernel make copies that differ in it. A
// dimension that is not used has the count 1. The layout is read by C.
type Strided struct {
	Length                 uint64 // bytes of one copy
	Counts                 [Dimensions]uint32
	DstStrides, SrcStrides [Dimensions]int64 // bytes
}

// Base is where a group of copies begins. The layout is read by C.
type Base struct{ Dst, Src uintptr }

// StridedStream is a stream of a device that makes strided copies.
type StridedStream interface {
	Stream
	// CopyStrided queues kernels that make the copies of all groups, in no order. s and at can be changed when it has returned.
	// It fails with ErrNoKernel if the device cannot do that, and with ErrOutOfReach for these copies alone.
	// After another error, any of them may have been queued.
	CopyStrided(kind Kind, s *Strided, at []Base) error
}

// Extents are the memory that a group of copies writes, and that it reads: from the first byte to the last one.
func (s *Strided) Extents(at Base) (dst, src Copy) {
	dst, src = Copy{Dst: at.Dst, Src: at.Src, Length: s.Length}, Copy{Dst: at.Dst, Src: at.Src, Length: s.Length}
	for i, count := range s.Counts {
		if count == 0 {
			return Copy{}, Copy{}
		}
		dst.Dst = widened(dst.Dst, &dst.Length, s.DstStrides[i], count)
		src.Src = widened(src.Src, &src.Length, s.SrcStrides[i], count)
	}
	return dst, src
}

// widened adds a dimension to a stretch of memory, and returns where the stretch begins then.
func widened(start uintptr, length *uint64, stride int64, count uint32) uintptr {
	distance := stride * int64(count-1)
	if distance < 0 {
		*length += uint64(-distance)
		return start - uintptr(-distance)
	}
	*length += uint64(distance)
	return start
}
