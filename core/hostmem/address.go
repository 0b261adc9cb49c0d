package hostmem

import "unsafe"

// never is false. escaped is where AddressOf would store a pointer.
var (
	never   bool
	escaped *byte
)

// AddressOf is the address of memory of Go's, which it keeps from being on a goroutine's stack: a stack moves when it grows.
// The caller keeps the memory alive.
func AddressOf(b []byte) uintptr {
	first := unsafe.SliceData(b)
	if never {
		escaped = first // what the compiler concludes from it is all that this is for
		first = escaped
	}
	return uintptr(unsafe.Pointer(first))
}
