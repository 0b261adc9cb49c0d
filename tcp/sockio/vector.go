package sockio

import "kvferry/core/hostmem"

// MaxVectors is how many vectors one sendmsg or recvmsg takes (UIO_MAXIOV).
const MaxVectors = 1024

// MinDirectRun is the least length of runs of a payload, in bytes, for each of which it pays to have a vector, where they lie apart.
// To pack shorter ones takes less than the kernel needs for each.
const MinDirectRun = 1 << 10

// Vector is one range of memory to send from or receive into, laid out as struct iovec. Base is a plain address: the caller
// keeps the memory in place, and the memory may belong to somebody else. A call with an address that is not mapped fails
// with EFAULT.
type Vector struct {
	Base   uintptr
	Length uint64
}

// VectorOf is the vector of a slice. The caller keeps the slice alive.
func VectorOf(b []byte) Vector { return Vector{hostmem.AddressOf(b), uint64(len(b))} }

// Holds reports whether an address lies in v.
func (v *Vector) Holds(address uintptr) bool { return uint64(address-v.Base) < v.Length }

// Extend appends a range of memory to v. A range that begins where the last vector ends makes that vector longer.
func Extend(v []Vector, base uintptr, length uint64) []Vector {
	if last := len(v) - 1; last >= 0 && v[last].Base+uintptr(v[last].Length) == base {
		v[last].Length += length
		return v
	}
	return append(v, Vector{base, length})
}

// Advance drops the first n bytes of v, and any empty vectors before the rest. It changes the vectors in place.
func Advance(v []Vector, n int) []Vector {
	left := uint64(n)
	for len(v) > 0 && left >= v[0].Length {
		left -= v[0].Length
		v = v[1:]
	}
	if len(v) > 0 {
		v[0].Base += uintptr(left)
		v[0].Length -= left
	}
	return v
}
