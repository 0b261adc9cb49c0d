package tcp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
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

// neighbourBuffer is the size of the socket buffers between neighbours, in bytes, where the system allows it.
const neighbourBuffer = 1 << 20

// stream is a data connection.
type stream interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// abandon closes a stream. What the kernel still has of it is not to arrive.
func abandon(conn stream) {
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0) // fails on a connection that is reset already
	}
	_ = conn.Close()
}

// tune sets a stream up. Who is dead is found by keepAlive on another host, and by the kernel on this one.
func tune(conn stream) error {
	switch c := conn.(type) {
	case *net.TCPConn:
		return c.SetKeepAliveConfig(keepAlive)
	case *net.UnixConn:
		return errors.Join(c.SetReadBuffer(neighbourBuffer), c.SetWriteBuffer(neighbourBuffer))
	}
	return nil
}

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
func (p *peer) dialNeighbour(ctx context.Context, d *metadata.Descriptor) *net.UnixConn {
	if d.Neighbour == "" || !p.transport.sameHost || !p.pipelined(d) {
		return nil
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", abstract(d.Neighbour).Name)
	if err != nil {
		return nil // it is on another host, most likely
	}
	if _, err := neighbourOf(conn.(*net.UnixConn)); err != nil {
		conn.Close()
		return nil
	}
	return conn.(*net.UnixConn)
}

func abstract(name string) *net.UnixAddr { return &net.UnixAddr{Name: "@" + name, Net: "unix"} }

// neighbourOf returns the process at the other end, as the kernel tells it; an error when it is none of this user's.
func neighbourOf(conn *net.UnixConn) (pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var who *unix.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) {
		who, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	switch {
	case asked != nil:
		return 0, os.NewSyscallError("getsockopt", asked)
	case who.Pid <= 0:
		return 0, fmt.Errorf("the process at the other end is not to be seen from here")
	case int(who.Uid) != os.Geteuid():
		return 0, fmt.Errorf("process %d belongs to user %d, not %d", who.Pid, who.Uid, os.Geteuid())
	}
	return int(who.Pid), nil
}

// fetchStep is the bytes after which a system call that fetches gets no further copies: others wait for it to end.
const fetchStep = 1 << 20

// fetching is a list of copies from another process into this one, that one system call makes.
type fetching struct {
	to, from []ioVector
	bytes    uint64
}

func (f *fetching) add(to, from uintptr, length uint64) {
	f.to = append(f.to, ioVector{to, length})
	f.from = append(f.from, ioVector{from, length})
	f.bytes += length
}

func (f *fetching) full() bool { return len(f.to) == maxGatherVectors || f.bytes >= fetchStep }

func (f *fetching) reset() { f.to, f.from, f.bytes = f.to[:0], f.from[:0], 0 }

// run makes the copies, and reports whether all were made. Those that were not may have been made in part.
func (f *fetching) run(pid int) bool {
	switch {
	case f.bytes == 0:
		return true
	case pid == 0:
		return false
	}
	n, _, errno := unix.Syscall6(unix.SYS_PROCESS_VM_READV, uintptr(pid),
		uintptr(unsafe.Pointer(unsafe.SliceData(f.to))), uintptr(len(f.to)),
		uintptr(unsafe.Pointer(unsafe.SliceData(f.from))), uintptr(len(f.from)), 0)
	return errno == 0 && uint64(n) == f.bytes
}
