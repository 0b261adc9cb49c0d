package tcp

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"
	"kvferry/core/threads"
	"kvferry/tcp/sockio"

	"golang.org/x/sys/unix"
)

// Engines on one host, of one user, read each other's memory, if the system lets them. None ever writes to another process.
//
//  1. A target listens on a Unix-domain socket beside its data port, and names it in its descriptor. The name is in the
//     abstract namespace, so it belongs to the network namespace, and is gone with the process.
//  2. The initiator connects to it (dial.go). The kernel tells both sides which process and which user the other one is
//     (process.go). What is not of the same user, or cannot be seen, is out of reach: then it is TCP for an initiator, and a
//     target copies nothing.
//  3. The initiator's hello brings a permit to copy from its memory, which it can revoke (permit.go).
//  4. What is sent over the connection are data frames as over TCP, and two more, in which the payload is named by its
//     address: see tcp/wire. Everything can be sent without these, and is where they are of no use.
//  5. WRITE by address: the session copies the payload from the initiator's memory, by the permit (session_fetch.go).
//  6. READ by address: the session tells which region the range is in, and the registry's epoch. With that the lane
//     copies by itself whatever it is asked for of the region, and looks at the epoch afterwards (lane_fetch.go): bytes of
//     memory that was taken back meanwhile are thrown away.

// listenForNeighbours makes the socket for peers on this host.
func listenForNeighbours() (listener *net.UnixListener, name string, err error) {
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, "", status.Errorf(status.Socket, "a name for a socket: %w", err)
	}
	name = "kvferry-" + hex.EncodeToString(random[:])
	listener, err = net.ListenUnix("unix", abstract(name))
	if err != nil {
		return nil, "", status.Errorf(status.Socket, "a socket for peers on this host: %w", err)
	}
	return listener, name, nil
}

func abstract(name string) *net.UnixAddr { return &net.UnixAddr{Name: "@" + name, Net: "unix"} }

const (
	// fetchStep is the bytes after which a system call that fetches gets no further copies: others wait for it to end.
	fetchStep = 1 << 20
	// shortStep is it where others are short: some tens of microseconds.
	shortStep = 256 << 10
)

// stint is what a goroutine copies by one system call after the other. After stintBytes it lets other threads have the
// processor, and other goroutines its place: one that has a short message to serve would wait for the end of this one's
// time slice otherwise, which is milliseconds. Where no other thread is ready that costs next to nothing.
type stint struct{ bytes uint64 }

const stintBytes = 1 << 20

func (s *stint) add(bytes uint64) {
	if s.bytes += bytes; s.bytes >= stintBytes {
		s.end()
	}
}

func (s *stint) end() {
	s.bytes = 0
	_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // always succeeds
}

// fetching is a list of copies from another process into this one, that one system call makes. It must not be on a stack,
// which may move while the kernel is given its address.
type fetching struct {
	to, from []sockio.Vector
	bytes    uint64
	stint    stint
	part     [2]sockio.Vector // of a copy that is made in steps
	process  *process         // during run
	permit   *permit          // likewise; nil for none
	found    proofBytes       // what the proof came to
}

// newFetching makes a list of no copies yet. A function that is not inlined cannot return memory of its stack.
//
//go:noinline
func newFetching() *fetching { return &fetching{} }

func (f *fetching) add(to, from uintptr, length uint64) {
	f.to = append(f.to, sockio.Vector{Base: to, Length: length})
	f.from = append(f.from, sockio.Vector{Base: from, Length: length})
	f.bytes += length
}

// full reports whether there is room for nothing but the proof.
func (f *fetching) full() bool { return len(f.to) == sockio.MaxVectors-1 || f.bytes >= fetchStep }

func (f *fetching) reset() { f.to, f.from, f.bytes = f.to[:0], f.from[:0], 0 }

// Why copies were not made.
var (
	errOutOfReach   = errors.New("the memory of the other process cannot be read")
	errRevoked      = errors.New("the initiator has given up what was to be copied")
	errProcessEnded = errors.New("the process to copy from has ended")
	errUnproven     = errors.New("the other process has changed what proves that the copies are valid")
)

// run makes the copies from a process, by its permit where there is to be one, and then copies the proof that they are
// valid. Where not all were made, or the proof is not as expected, an error says why, and they may have been made in part.
// Long ones have their turns, and are made in short steps, while there are short ones about.
func (f *fetching) run(from *process, permit *permit, by proof) error {
	if from == nil {
		return errOutOfReach
	}
	f.process, f.permit = from, permit
	copies, bytes := len(f.to), f.bytes
	f.add(sockio.AddressOf(f.found[:]), by.at, by.length)
	err := f.copyAll()
	f.to, f.from, f.bytes = f.to[:copies], f.from[:copies], bytes
	if err == nil && f.found != by.expected {
		err = f.whyUnproven()
	}
	f.process, f.permit, f.found = nil, nil, proofBytes{}
	return err
}

// whyUnproven tells a process that has changed the proof from one that has ended, whose id another process has now.
func (f *fetching) whyUnproven() error {
	if f.process.lives() {
		return errUnproven
	}
	return f.ended(f.to, f.bytes)
}

func (f *fetching) copyAll() error {
	if f.bytes < bulkLength || !copies.enter() {
		err := f.copy(f.to, f.from, f.bytes)
		f.stint.add(f.bytes)
		return err
	}
	defer copies.leave()
	return f.inSteps()
}

// inSteps makes the copies by one system call after the other, of no more than shortStep bytes each.
func (f *fetching) inSteps() error {
	for i := 0; i < len(f.to); {
		if f.to[i].Length > shortStep {
			if err := f.inParts(f.to[i], f.from[i]); err != nil {
				return err
			}
			i++
			continue
		}
		first, bytes := i, uint64(0)
		for ; i < len(f.to) && bytes+f.to[i].Length <= shortStep; i++ {
			bytes += f.to[i].Length
		}
		if err := f.copy(f.to[first:i], f.from[first:i], bytes); err != nil {
			return err
		}
		f.stint.end()
	}
	return nil
}

// inParts makes one copy likewise.
func (f *fetching) inParts(to, from sockio.Vector) error {
	for left := to.Length; left > 0; f.stint.end() {
		length, done := min(left, shortStep), uintptr(to.Length-left)
		f.part = [2]sockio.Vector{{Base: to.Base + done, Length: length}, {Base: from.Base + done, Length: length}}
		if err := f.copy(f.part[:1], f.part[1:], length); err != nil {
			return err
		}
		left -= length
	}
	return nil
}

// copy makes one system call that copies, within the permit. The process is looked at before it, unless it was a moment ago,
// so that hardly ever anything is copied from a process that nobody meant; the proof shows afterwards that nothing was.
func (f *fetching) copy(to, from []sockio.Vector, bytes uint64) error {
	if f.permit != nil {
		if !f.permit.begin() {
			return errRevoked
		}
		defer f.permit.end()
	}
	var copied uint64
	if f.process.livedLately() || f.process.lives() {
		copied = copyFrom(f.process.id, to, from)
	}
	switch {
	case copied == bytes:
		return nil
	case f.process.lives():
		return errOutOfReach
	}
	return f.ended(to, copied)
}

// ended fails copies of which so many bytes were made, because the process has ended. Its id may be another process's now.
func (f *fetching) ended(to []sockio.Vector, bytes uint64) error {
	if !f.process.hasItsID() {
		wipe(to, bytes)
	}
	return fmt.Errorf("%v: %w", f.process, errProcessEnded)
}

// wipe overwrites the first bytes of a list of memory, which may have come from a process that nobody meant.
func wipe(to []sockio.Vector, bytes uint64) {
	zeros := make([]byte, shortStep)
	for _, v := range to {
		for length := min(v.Length, bytes); length > 0; {
			part := min(length, shortStep)
			_ = core.CopyMemory(v.Base, sockio.AddressOf(zeros), part) // fails where there is nothing
			v.Base += uintptr(part)
			length -= part
			bytes -= part
		}
	}
}

// copyFrom copies from another process by one system call, and returns how many bytes, from the first one on.
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
