// Package samehost copies between processes of one host, and revokes such copies. No process ever writes to another one.
//
// Engines of one user read each other's memory, if the system lets them:
//
//  1. A target listens on a Unix-domain socket beside its data port (Listen), and names it in its descriptor.
//  2. The initiator connects to it. The kernel tells both sides the process and the user of the other side (Process). The
//     memory of a process of another user, or of one that cannot be seen, is out of reach. Then the initiator uses TCP, and a
//     target copies nothing.
//  3. The initiator's hello brings a permit to copy from its memory, which it can revoke (Permit).
//  4. The connection carries the frames of TCP, and requests by address, which name the payload instead of bringing it
//     (tcp/wire). Every request can be sent without them.
//  5. WRITE by address: the target's session copies the payload from the initiator's memory, by the permit (Copies).
//  6. READ by address: the target answers with a grant, which names the region and its epoch (Memory). The initiator's lane
//     copies from that region on its own from then on. The epoch is copied last: if it has changed, the region may have been
//     taken back, and the lane drops the bytes.
package samehost

import (
	"crypto/rand"
	"encoding/hex"
	"net"

	"kvferry/core/status"
)

// Listen makes the socket for peers on this host. Its name goes into the descriptor; Address turns it into an address.
func Listen() (listener *net.UnixListener, name string, err error) {
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, "", status.Errorf(status.Socket, "making a name for the socket for peers on this host: %w", err)
	}
	name = "kvferry-" + hex.EncodeToString(random[:])
	listener, err = net.ListenUnix("unix", Address(name))
	if err != nil {
		return nil, "", status.Errorf(status.Socket, "opening the socket for peers on this host: %w", err)
	}
	return listener, name, nil
}

// Address is the address of the socket with a name. It is in the abstract namespace, so it belongs to the network namespace,
// and disappears with the process.
func Address(name string) *net.UnixAddr { return &net.UnixAddr{Name: "@" + name, Net: "unix"} }
