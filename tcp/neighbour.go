package tcp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"unsafe"

	"kvferry/core/metadata"
	"kvferry/core/status"

	"golang.org/x/sys/unix"
)

// Engines on one host, of one user, are neighbours: each may read the other's memory, if the system lets it. None ever
// writes to another process: what reads too late, because memory was taken back or a process died meanwhile, reads
// something that is thrown away.
//
//  1. A target listens on a Unix-domain socket beside its data port, and names it in its descriptor. The name is in the
//     abstract namespace, so it belongs to the network namespace, and is gone with the process.
//  2. dialNeighbour connects to it. The kernel tells both sides which process and which user the other one is. An
//     initiator leaves alone what is not of its user, or cannot be seen from where it is: then TCP it is. A target serves
//     whoever can connect, as on its data port, but fetches nothing from such a process.
//  3. What is sent over it are data frames as over TCP, and two more, in which the payload is named by its address: see
//     frame.go. Everything can be sent without these, and is where they are of no use.
//  4. WRITE by address: the session fetches the payload from the initiator's memory (session_fetch.go).
//  5. READ by address: the session tells which region the range is in, and the registry's epoch. With that the lane
//     fetches by itself whatever it is asked for of the region, and looks at the epoch afterwards (lane_fetch.go).

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

// dialNeighbour connects to the owner of a descriptor if that is a neighbour.
func (p *peer) dialNeighbour(ctx context.Context, d *metadata.Descriptor) *stream {
	if d.Neighbour == "" || !p.transport.sameHost || !p.pipelined(d) {
		return nil
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", abstract(d.Neighbour).Name)
	if err != nil {
		return nil // it is on another host, most likely
	}
	s, err := newStream(conn.(*net.UnixConn))
	if err != nil {
		return nil
	}
	if err := s.findNeighbour(); err != nil {
		_ = s.close()
		return nil
	}
	return s
}

func abstract(name string) *net.UnixAddr { return &net.UnixAddr{Name: "@" + name, Net: "unix"} }

// findNeighbour notes the process at the other end, as the kernel tells it; an error when it is none of this user's.
func (s *stream) findNeighbour() error {
	var who *unix.Ucred
	err := s.control(func(socket int) (err error) {
		who, err = unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return os.NewSyscallError("getsockopt", err)
	})
	switch {
	case err != nil:
		return err
	case who.Pid <= 0:
		return fmt.Errorf("the process at the other end is not to be seen from here")
	case int(who.Uid) != os.Geteuid():
		return fmt.Errorf("process %d belongs to user %d, not %d", who.Pid, who.Uid, os.Geteuid())
	}
	s.pid = int(who.Pid)
	return nil
}

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

// fetching is a list of copies from another process into this one, that one system call makes.
type fetching struct {
	to, from []ioVector
	bytes    uint64
	stint    stint
	part     [2]ioVector // of a copy that is made in steps
}

func (f *fetching) add(to, from uintptr, length uint64) {
	f.to = append(f.to, ioVector{to, length})
	f.from = append(f.from, ioVector{from, length})
	f.bytes += length
}

func (f *fetching) full() bool { return len(f.to) == maxGatherVectors || f.bytes >= fetchStep }

func (f *fetching) reset() { f.to, f.from, f.bytes = f.to[:0], f.from[:0], 0 }

// run makes the copies, and reports whether all were made. Those that were not may have been made in part. Long ones have
// their turns, and are made in short steps, while there are short ones about.
func (f *fetching) run(pid int) bool {
	switch {
	case f.bytes == 0:
		return true
	case pid == 0:
		return false
	case f.bytes < bulkLength || !copies.enter():
		made := copyFrom(pid, f.to, f.from, f.bytes)
		f.stint.add(f.bytes)
		return made
	}
	defer copies.leave()
	return f.inSteps(pid)
}

// inSteps makes the copies by one system call after the other, of no more than shortStep bytes each.
func (f *fetching) inSteps(pid int) bool {
	for i := 0; i < len(f.to); {
		if f.to[i].length > shortStep {
			if !f.inParts(pid, f.to[i], f.from[i]) {
				return false
			}
			i++
			continue
		}
		first, bytes := i, uint64(0)
		for ; i < len(f.to) && bytes+f.to[i].length <= shortStep; i++ {
			bytes += f.to[i].length
		}
		if !copyFrom(pid, f.to[first:i], f.from[first:i], bytes) {
			return false
		}
		f.stint.end()
	}
	return true
}

// inParts makes one copy likewise.
func (f *fetching) inParts(pid int, to, from ioVector) bool {
	for left := to.length; left > 0; f.stint.end() {
		length, done := min(left, shortStep), uintptr(to.length-left)
		f.part = [2]ioVector{{to.base + done, length}, {from.base + done, length}}
		if !copyFrom(pid, f.part[:1], f.part[1:], length) {
			return false
		}
		left -= length
	}
	return true
}

// copyFrom copies so many bytes from another process by one system call, all or not all.
func copyFrom(pid int, to, from []ioVector, bytes uint64) bool {
	n, _, errno := unix.Syscall6(unix.SYS_PROCESS_VM_READV, uintptr(pid),
		uintptr(unsafe.Pointer(unsafe.SliceData(to))), uintptr(len(to)),
		uintptr(unsafe.Pointer(unsafe.SliceData(from))), uintptr(len(from)), 0)
	return errno == 0 && uint64(n) == bytes
}
