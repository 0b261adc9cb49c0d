package core

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
)

// randomNumber is a random number from the kernel. A generator that is seeded once in a process would give the same numbers to all
// of its children that were forked without exec.
func randomNumber() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return binary.NativeEndian.Uint64(b[:])
}

func newIdentity() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails: see crypto/rand
	return hex.EncodeToString(random[:])
}
