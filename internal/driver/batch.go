package driver

import (
	"fmt"

	"kvferry/core/device"
)

// Batch is a list of copies as the arrays that libraries take in one call, in C's types for addresses and sizes. Fill uses
// its memory again.
type Batch[Address, Size ~uint64 | ~uintptr] struct {
	To, From []Address
	Lengths  []Size // bytes
}

// Fill replaces the copies.
func (b *Batch[Address, Size]) Fill(copies []device.Copy) {
	b.To, b.From, b.Lengths = b.To[:0], b.From[:0], b.Lengths[:0]
	for _, c := range copies {
		b.To = append(b.To, Address(c.Dst))
		b.From = append(b.From, Address(c.Src))
		b.Lengths = append(b.Lengths, Size(c.Length))
	}
}

// BatchFailure is the error of a call for these copies. It is device.ErrNoBatches where the call failed with unsupported,
// the code of a library without batches. index is the copy that the error is about, beyond the last where it is about none.
func BatchFailure(err error, unsupported int, copies []device.Copy, index uint64) error {
	if FailedWith(err, unsupported) {
		return device.ErrNoBatches
	}
	if err != nil && index < uint64(len(copies)) {
		refused := copies[index]
		err = fmt.Errorf("%w (%d bytes from %#x to %#x)", err, refused.Length, refused.Src, refused.Dst)
	}
	return err
}
