package samehost

import (
	"encoding/binary"

	"kvferry/tcp/wire"
)

// Proof is memory of a process that proves copies from it. It is copied after other memory, by the same system call or a later
// one. If its bytes are as expected, all copies came from that process while they were valid: no other process has the same
// bytes at that address. A process that has got the id of the first one has other memory there, and so has a forked child.
type Proof struct {
	at       uintptr // in that process
	length   uint64  // bytes
	expected proofBytes
}

// proofOf proves that memory was copied from the process of the region before the grant ended.
func proofOf(g *wire.Grant) Proof {
	p := Proof{at: uintptr(g.EpochAt), length: 8}
	binary.NativeEndian.PutUint64(p.expected[:], g.Epoch)
	return p
}

// proofBytes has room for the bytes of a proof; zeros follow those of a short one.
type proofBytes [16]byte
