package sockio

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"kvferry/core/shut"

	"golang.org/x/sys/unix"
)

// Inner is the connection below TLS: a tls.Conn reads and writes records by it.
//
//  1. At first it is a connection of package net, and waits as such. The handshake takes place in this state.
//  2. NewSecure makes it part of a Socket. From then on it never waits. Read returns errAgain while nothing has arrived:
//     crypto/tls keeps a record of which a part has come. Write always takes a whole record, because crypto/tls cannot make
//     the same record twice: what the socket does not take is held, and goes before anything else.
//
// Deadlines and Close are those of the Socket in the second state, and do nothing here. It reads in inner_receive.go, and writes in
// inner_send.go.
type Inner struct {
	conn Conn
	fd   int // of the Socket, valid while one of its readinesses is held; -1 in the first state

	offered int // a descriptor to send along with the next bytes; -1 for none
	file    int // a descriptor that came from a process of this host; -1 for none
	wear    wear
	expects bool // a descriptor may come with the next bytes

	// Read: how far the records that were read have been understood by crypto/tls.
	arrived   records
	recvErrno syscall.Errno // why nothing can be read any more

	// Write. crypto/tls writes alerts and answers to key updates on the goroutine that reads.
	sending   sync.Mutex
	sealed    uint64        // calls of Write, each of one record
	batch     *batch        // room for what is held; nil while nothing is
	held      []byte        // records, and rests of records, that the socket has not taken
	hold      bool          // another record follows at once
	full      bool          // the socket took less than it was given the last time
	written   uint64        // bytes of all records, since the Socket was made
	taken     uint64        // how many of these bytes the socket has taken
	sendErrno syscall.Errno // why nothing can be sent any more
	message   unix.Msghdr   // of push
	vectors   [2]Vector
}

// errAgain says that nothing has arrived. It is temporary, so that crypto/tls goes on later.
var errAgain net.Error = againError{}

type againError struct{}

func (againError) Error() string   { return "nothing has arrived yet" }
func (againError) Timeout() bool   { return true }
func (againError) Temporary() bool { return true }

// ErrCutOff is why a stream under TLS ended that its sender has not ended: anybody on the way can close a connection.
var ErrCutOff = errors.New("the connection was closed without the end that TLS has for it")

// NewInner is for a connection on which TLS is about to begin.
func NewInner(conn Conn) *Inner {
	return &Inner{conn: conn, fd: -1, offered: -1, file: -1, wear: wear{limit: MaxRecords}}
}

// ExpectFile takes a descriptor that comes from a process of this host with the hello. The kernel drops it otherwise.
func (i *Inner) ExpectFile() { _, i.expects = i.conn.(*net.UnixConn) }

// OfferFile sends a descriptor along with the next bytes. The caller keeps it open until these are written.
func (i *Inner) OfferFile(file int) { i.offered = file }

// Close implements net.Conn. It ends a handshake.
func (i *Inner) Close() error {
	if i.fd >= 0 {
		return nil
	}
	return i.conn.Close()
}

// Abandon closes the connection, of which no Socket has been made, for every process that has it. An alert of TLS arrives before
// the end.
func (i *Inner) Abandon() {
	i.forgetFile()
	_ = shut.Close(i.conn) // fails where the handshake has closed it
}

// forgetFile closes a descriptor that came.
func (i *Inner) forgetFile() {
	if i.file >= 0 {
		CloseFile(i.file)
		i.file = -1
	}
}

// LocalAddr implements net.Conn.
func (i *Inner) LocalAddr() net.Addr { return i.conn.LocalAddr() }

// RemoteAddr implements net.Conn.
func (i *Inner) RemoteAddr() net.Addr { return i.conn.RemoteAddr() }

// SetDeadline implements net.Conn.
func (i *Inner) SetDeadline(t time.Time) error {
	if i.fd >= 0 {
		return nil
	}
	return i.conn.SetDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (i *Inner) SetReadDeadline(t time.Time) error {
	if i.fd >= 0 {
		return nil
	}
	return i.conn.SetReadDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (i *Inner) SetWriteDeadline(t time.Time) error {
	if i.fd >= 0 {
		return nil
	}
	return i.conn.SetWriteDeadline(t)
}
