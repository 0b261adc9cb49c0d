package samehost

// seen remembers stretches of another process's memory that were read without trouble, so that its pages are probably in
// memory: a thread that reads them again does not wait for them. It forgets what others displace. The zero value has seen
// nothing.
type seen struct{ stretches []uint32 }

const (
	seenStretch = 64 << 10 // bytes of a stretch
	seenPlaces  = 1 << 14  // stretches that are remembered: 1 GiB of memory in 64 KiB
)

func (s *seen) has(addr, length uint64) bool {
	if s.stretches == nil {
		return false
	}
	for n := addr / seenStretch; n <= (addr+length-1)/seenStretch; n++ {
		if s.stretches[n%seenPlaces] != tagOf(n) {
			return false
		}
	}
	return true
}

func (s *seen) add(addr, length uint64) {
	if s.stretches == nil {
		s.stretches = make([]uint32, seenPlaces)
	}
	for n := addr / seenStretch; n <= (addr+length-1)/seenStretch; n++ {
		s.stretches[n%seenPlaces] = tagOf(n)
	}
}

// tagOf tells a stretch from the others in its place; it is never 0. Addresses have 57 bits at most.
func tagOf(n uint64) uint32 { return uint32(n/seenPlaces) + 1 }
