package core

import (
	"crypto/rand"
	"encoding/binary"
)

// randomNumber is a number that no other process has but by a chance of one in 2^64. It comes from the kernel: a
// generator that is seeded once in a process would give siblings that were forked without exec the same numbers.
func randomNumber() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return binary.NativeEndian.Uint64(b[:])
}
