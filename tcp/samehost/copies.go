package samehost

import (
	"errors"
	"fmt"
	"unsafe"

	"kvferry/core/clock"
	"kvferry/core/hostmem"
	"kvferry/core/spin"
	"kvferry/core/threads"
	"kvferry/tcp/sockio"

	"golang.org/x/sys/unix"
)

const (
	// maxCopyBytes is the number of bytes after which a list takes no further copies, because other work waits for its end.
	maxCopyBytes = 1 << 20
	// shortStep bounds a system call while short transfers are expected. It takes some tens of microseconds.
	shortStep = 256 << 10
)

// yieldBudget counts the bytes that a goroutine copies by one system call after the other. After yieldBytes the goroutine
// yields the processor to other threads and its place to other goroutines, unless other programs want the processor, too.
// Otherwise a thread that has to serve a short message would wait for the end of the time slice, which is milliseconds. To
// yield costs next to nothing where no other thread is ready.
type yieldBudget struct {
	contention *spin.Contention
	bytes      uint64
}

const yieldBytes = 1 << 20

func (b *yieldBudget) add(bytes uint64) {
	if b.bytes += bytes; b.bytes >= yieldBytes {
		b.yield()
	}
}

func (b *yieldBudget) yield() {
	b.bytes = 0
	b.contention.YieldPlace(clock.Now())
}

// Copies is a list of copies from another process into this one, which one system call makes. It must not be on a stack,
// because a stack may move while the kernel has its address. It is not for use by several goroutines at once.
//
//  1. Add adds a copy, until the list is Full.
//  2. Run copies the list and then the proof. While short transfers are expected, it makes long copies in steps (inSteps,
//     inParts), by leave of the limiter.
//  3. Each system call (copy) is made within the permit, if there is one.
type Copies struct {
	To, From []sockio.Vector // for reading; of the same lengths
	Bytes    uint64
	budget   yieldBudget
	part     [2]sockio.Vector // of a copy that is made in parts
	process  *Process         // during run
	permit   *Permit          // likewise; nil for none
	found    proofBytes       // what the proof came to
	limiter  *CopyLimiter     // of long copies; nil where none is long
}

// NewCopies makes an empty list. limiter may be nil for a list without long copies. A function that is not inlined cannot
// return memory of its stack.
//
//go:noinline
func NewCopies(limiter *CopyLimiter) *Copies {
	c := &Copies{limiter: limiter}
	if limiter != nil {
		c.budget.contention = limiter.contention
	}
	return c
}

// Add adds a copy of length bytes, from an address of the other process to one of this process.
func (c *Copies) Add(to, from uintptr, length uint64) {
	c.To = append(c.To, sockio.Vector{Base: to, Length: length})
	c.From = append(c.From, sockio.Vector{Base: from, Length: length})
	c.Bytes += length
}

// Full reports whether there is room for nothing but the proof.
func (c *Copies) Full() bool { return len(c.To) == sockio.MaxVectors-1 || c.Bytes >= maxCopyBytes }

// Reset empties the list.
func (c *Copies) Reset() { c.To, c.From, c.Bytes = c.To[:0], c.From[:0], 0 }

// Why copies were not made.
var (
	ErrOutOfReach   = errors.New("the memory of the other process cannot be read")
	errRevoked      = errors.New("the initiator has given up what was to be copied")
	errProcessEnded = errors.New("the process to copy from has ended")
	ErrUnproven     = errors.New("the other process has changed what proves that the copies are valid")
)

// Run makes the copies from a process, and then copies the proof that they are valid. permit is nil where none is needed. An
// error says why not all copies were made, or why they are not valid; the memory may have been overwritten in part.
func (c *Copies) Run(from *Process, permit *Permit, by Proof) error {
	if from == nil {
		return ErrOutOfReach
	}
	c.process, c.permit = from, permit
	copies, bytes := len(c.To), c.Bytes
	c.Add(hostmem.AddressOf(c.found[:]), by.at, by.length)
	err := c.copyAll()
	c.To, c.From, c.Bytes = c.To[:copies], c.From[:copies], bytes
	if err == nil && c.found != by.expected {
		err = c.whyUnproven()
	}
	c.process, c.permit, c.found = nil, nil, proofBytes{}
	return err
}

// whyUnproven distinguishes a process that has changed the proof from one that has ended, and whose id another process has
// now.
func (c *Copies) whyUnproven() error {
	if c.process.Lives() {
		return ErrUnproven
	}
	return c.ended(c.To, c.Bytes)
}

func (c *Copies) copyAll() error {
	if c.Bytes < longLength || !c.limiter.Acquire() {
		err := c.copy(c.To, c.From, c.Bytes)
		c.budget.add(c.Bytes)
		return err
	}
	defer c.limiter.Release()
	return c.inSteps()
}

// inSteps makes the copies by system calls of at most shortStep bytes each.
func (c *Copies) inSteps() error {
	for i := 0; i < len(c.To); {
		if c.To[i].Length > shortStep {
			if err := c.inParts(c.To[i], c.From[i]); err != nil {
				return err
			}
			i++
			continue
		}
		first, bytes := i, uint64(0)
		for ; i < len(c.To) && bytes+c.To[i].Length <= shortStep; i++ {
			bytes += c.To[i].Length
		}
		if err := c.copy(c.To[first:i], c.From[first:i], bytes); err != nil {
			return err
		}
		c.budget.yield()
	}
	return nil
}

// inParts makes one copy by system calls of at most shortStep bytes each.
func (c *Copies) inParts(to, from sockio.Vector) error {
	for left := to.Length; left > 0; c.budget.yield() {
		length, done := min(left, shortStep), uintptr(to.Length-left)
		c.part = [2]sockio.Vector{{Base: to.Base + done, Length: length}, {Base: from.Base + done, Length: length}}
		if err := c.copy(c.part[:1], c.part[1:], length); err != nil {
			return err
		}
		left -= length
	}
	return nil
}

// copy makes one system call that copies, within the permit. It checks first that the process lives, unless that was checked
// a moment ago, so that it hardly ever copies from a successor with the same id. The proof shows afterwards that it did not.
func (c *Copies) copy(to, from []sockio.Vector, bytes uint64) error {
	if c.permit != nil {
		if !c.permit.begin() {
			return errRevoked
		}
		defer c.permit.end()
	}
	var copied uint64
	if c.process.livedLately() || c.process.Lives() {
		copied = copyFrom(c.process.id, to, from)
	}
	switch {
	case copied == bytes:
		return nil
	case c.process.Lives():
		return ErrOutOfReach
	}
	return c.ended(to, copied)
}

// ended fails copies because the process has ended. bytes of them were made, perhaps from a successor with the same id: then
// they are wiped.
func (c *Copies) ended(to []sockio.Vector, bytes uint64) error {
	if !c.process.hasItsID() {
		wipe(to, bytes)
	}
	return fmt.Errorf("%v: %w", c.process, errProcessEnded)
}

// wipe overwrites the first bytes of a list of memory.
func wipe(to []sockio.Vector, bytes uint64) {
	zeros := make([]byte, shortStep)
	var copier hostmem.Copier
	for _, v := range to {
		for length := min(v.Length, bytes); length > 0; {
			part := min(length, shortStep)
			_ = copier.Copy(v.Base, hostmem.AddressOf(zeros), part) // fails where there is nothing
			v.Base += uintptr(part)
			length -= part
			bytes -= part
		}
	}
}

// copyFrom copies from another process by one system call, and returns how many bytes it has copied, from the first one on.
func copyFrom(pid int, to, from []sockio.Vector) (bytes uint64) {
	threads.Enter()
	defer threads.Leave()
	n, _, errno := unix.Syscall6(unix.SYS_PROCESS_VM_READV, uintptr(pid),
		uintptr(unsafe.Pointer(unsafe.SliceData(to))), uintptr(len(to)),
		uintptr(unsafe.Pointer(unsafe.SliceData(from))), uintptr(len(from)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(n)
}
