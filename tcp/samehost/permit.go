package samehost

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"kvferry/core/hostmem"

	"golang.org/x/sys/unix"
)

// Permit lets the target of a connection copy from the memory of the initiator's process, until the initiator revokes
// it. It is one word of memory that the two processes share:
//
//  1. The initiator makes the permit (NewPermit) and sends it with its hello, as a file descriptor. The target maps it
//     (OpenPermit).
//  2. Before each system call that copies, the target takes the permit (begin), and after it gives the permit back (end).
//     Both are one atomic operation.
//  3. When the initiator gives something up that is in flight on the connection, it revokes the permit. The target copies
//     nothing from then on. Where a copy is under way, Revoke waits for its end, or for the end of the target's process.
//
// A target that is stopped after begin keeps the permit, and nobody can tell whether its copy is still to come. Revoke
// gives such a wait up after a while; the memory must not be used for something else then.
type Permit struct {
	At uintptr // address of the page in the initiator's process

	page []byte // shared; its first word is the state, a nonce follows
}

// The states of a permit.
const (
	permitFree    = 0
	permitTaken   = 1 // a copy is under way
	permitAwaited = 2 // likewise, and the initiator waits for its end
	permitRevoked = 3
)

const (
	permitSize  = 4096 // bytes: a page everywhere that matters; the kernel rounds up
	nonceAt     = 64   // in the page: off the line that the two processors share
	nonceLength = len(proofBytes{})
	permitSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

	// lookInterval is how long Revoke waits for the permit before it checks again whether the target's process lives.
	lookInterval = 20 * time.Millisecond
)

// NewPermit makes a permit and the file descriptor that the peer maps it by, which the caller closes.
func NewPermit() (p *Permit, file int, err error) {
	if file, err = unix.MemfdCreate("kvferry-permit", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		return nil, -1, os.NewSyscallError("memfd_create", err)
	}
	err = unix.Ftruncate(file, permitSize)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(file), unix.F_ADD_SEALS, permitSeals)
	}
	if err == nil {
		p, err = OpenPermit(file, 0)
	}
	if err == nil { // a child that was forked is not to be taken for this process
		err = errors.Join(os.NewSyscallError("madvise", unix.Madvise(p.page, unix.MADV_DONTFORK)))
	}
	if err != nil {
		return nil, -1, errors.Join(err, p.Close(), unix.Close(file))
	}
	p.At = hostmem.AddressOf(p.page)
	_, _ = rand.Read(p.nonce()) // never fails: see crypto/rand
	return p, file, nil
}

// OpenPermit maps the permit that a peer has sent. at is the address of the page in the peer's process. OpenPermit refuses a
// file that the peer could cut short, because touching a page that is gone raises a signal.
func OpenPermit(file int, at uintptr) (*Permit, error) {
	seals, err := unix.FcntlInt(uintptr(file), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if seals&permitSeals != permitSeals {
		return nil, fmt.Errorf("the file is not sealed against a change of its size (seals %#x)", seals)
	}
	var about unix.Stat_t
	if err := unix.Fstat(file, &about); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if about.Size != permitSize {
		return nil, fmt.Errorf("the file has %d bytes, not %d", about.Size, permitSize)
	}
	page, err := unix.Mmap(file, 0, permitSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return &Permit{page: page, At: at}, nil
}

func (p *Permit) word() *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(unsafe.SliceData(p.page)))
}

func (p *Permit) nonce() []byte { return p.page[nonceAt : nonceAt+nonceLength] }

// Proof proves that memory was copied from the process that made the permit: no other process has the nonce at that address.
func (p *Permit) Proof() Proof {
	return Proof{at: p.At + nonceAt, length: uint64(nonceLength), expected: proofBytes(p.nonce())}
}

// IsOf reports whether a process has made the permit, and whether its memory can be read.
func (p *Permit) IsOf(who *Process) bool {
	return NewCopies(nil).Run(who, nil, p.Proof()) == nil && who.Lives()
}

// begin takes the permit for one copy. It returns false when the permit was revoked.
func (p *Permit) begin() bool { return p.word().CompareAndSwap(permitFree, permitTaken) }

// end gives the permit back.
func (p *Permit) end() {
	word := p.word()
	if word.CompareAndSwap(permitTaken, permitFree) {
		return
	}
	word.Store(permitRevoked)
	futex(word, futexWake, math.MaxInt32, 0)
}

// Revoke takes the permit back for good, and returns true when no copy by it is under way any more. It waits for at most
// limit, and only as long as gone returns false.
func (p *Permit) Revoke(limit time.Duration, gone func() bool) bool {
	word := p.word()
	for end := time.Now().Add(limit); ; {
		if word.CompareAndSwap(permitFree, permitRevoked) || gone() {
			return true
		}
		left := time.Until(end)
		switch state := word.Load(); {
		case state == permitRevoked:
			return true
		case left <= 0:
			return false
		case state == permitTaken:
			word.CompareAndSwap(permitTaken, permitAwaited)
		case state != permitFree: // awaited, or a value that no correct peer writes
			futex(word, futexWait, state, min(left, lookInterval))
		}
	}
}

// Close unmaps the permit.
func (p *Permit) Close() error {
	if p == nil {
		return nil
	}
	return unix.Munmap(p.page)
}

// Operations of futex(2) on memory that processes share.
const (
	futexWait = 0
	futexWake = 1
)

func futex(word *atomic.Uint32, operation, value uint32, limit time.Duration) {
	var wait *unix.Timespec
	if limit > 0 {
		span := unix.NsecToTimespec(int64(limit))
		wait = &span
	}
	// Whatever comes of it, the caller looks at the word again.
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), uintptr(operation), uintptr(value),
		uintptr(unsafe.Pointer(wait)), 0, 0)
}
