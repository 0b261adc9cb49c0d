package sockio

import (
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

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
// Deadlines and Close are those of the Socket in the second state, and do nothing here.
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

const (
	// maxBatch bounds the bytes of records that wait for the next one. One system call sends them all, and wakes the peer once.
	maxBatch = 128 << 10
	// maxHeld bounds what is held: records of one call, and what a peer can make crypto/tls answer while it reads nothing.
	maxHeld = maxBatch + 64<<10
)

// batch is room for the records of one system call. A connection has one only while it holds some.
type batch [maxBatch + maxPlaintext + recordHeader + recordOverhead]byte

var batches = sync.Pool{New: func() any { return new(batch) }}

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

// Read implements net.Conn.
func (i *Inner) Read(b []byte) (n int, err error) {
	switch {
	case i.fd >= 0:
		n, err = i.receive(b)
	case i.expects:
		n, err = i.readWithFile(b)
	default:
		n, err = i.conn.Read(b)
	}
	i.arrived.note(b[:max(n, 0)])
	i.wear.note(i.arrived.count)
	return n, err
}

// readWithFile is Read from a process of this host before the Socket is made.
func (i *Inner) readWithFile(b []byte) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	n, came, _, _, err := i.conn.(*net.UnixConn).ReadMsgUnix(b, control)
	i.keepFile(control[:max(came, 0)])
	return max(n, 0), err // n is -1 with an error
}

// keepFile keeps the first descriptor that came, and closes others.
func (i *Inner) keepFile(control []byte) {
	if file := firstFile(control); i.file < 0 {
		i.file = file
	} else if file >= 0 {
		CloseFile(file)
	}
}

// receive is Read from the socket, without waiting.
func (i *Inner) receive(b []byte) (n int, err error) {
	if i.recvErrno != 0 {
		return 0, i.recvErrno
	}
	var errno syscall.Errno
	if i.expects {
		n, errno = i.receiveWithFile(b)
	} else {
		n, errno = receiveRaw(i.fd, b)
	}
	switch {
	case errno == unix.EAGAIN:
		return 0, errAgain
	case errno != 0:
		i.recvErrno = errno
		return 0, errno
	case n == 0:
		return 0, ErrCutOff // io.EOF would be a good end for crypto/tls
	}
	i.expects = false // it comes with the first bytes after the handshake
	return n, nil
}

func (i *Inner) receiveWithFile(b []byte) (int, syscall.Errno) {
	control := make([]byte, unix.CmsgSpace(4))
	for {
		n, came, _, _, err := unix.Recvmsg(i.fd, b, control, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		i.keepFile(control[:max(came, 0)])
		errno, _ := err.(syscall.Errno)
		return max(n, 0), errno
	}
}

// receiveRaw receives into memory of the library, which is there: the call does not wait.
func receiveRaw(fd int, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
		if errno != unix.EINTR {
			return max(int(n), 0), errno
		}
	}
}

// Write implements net.Conn.
func (i *Inner) Write(b []byte) (int, error) {
	length := len(b)
	i.sealed++
	i.wear.note(i.sealed)
	if i.fd < 0 {
		return i.writeAll(b)
	}
	i.sending.Lock()
	defer i.sending.Unlock()
	if len(i.held)+len(b) > maxHeld && i.sendErrno == 0 {
		i.sendErrno = unix.ENOBUFS
	}
	i.written += uint64(length)
	if !i.hold || len(i.held)+len(b) > maxBatch {
		b = i.push(b)
	}
	if i.sendErrno != 0 {
		return 0, i.sendErrno
	}
	i.keep(b)
	return length, nil
}

// keep holds b behind what is held.
func (i *Inner) keep(b []byte) {
	if len(b) > 0 && i.batch == nil {
		i.batch = batches.Get().(*batch)
		i.held = i.batch[:0]
	}
	i.held = append(i.held, b...)
}

// sentHeld drops the first n bytes of what is held.
func (i *Inner) sentHeld(n int) {
	i.held = i.held[:copy(i.held, i.held[n:])]
	if len(i.held) == 0 && i.batch != nil {
		batches.Put(i.batch)
		i.batch, i.held = nil, nil
	}
}

// writeAll is Write before the Socket is made. It raises no SIGPIPE.
func (i *Inner) writeAll(b []byte) (int, error) {
	raw, err := i.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var control []byte
	if i.offered >= 0 {
		control = unix.UnixRights(i.offered)
	}
	written := 0
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for written < len(b) {
			n, err := unix.SendmsgN(int(fd), b[written:], control, nil, unix.MSG_NOSIGNAL)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return false
			case err != nil:
				failed = os.NewSyscallError("sendmsg", err)
				return true
			}
			control, i.offered = nil, -1
			written += n
		}
		return true
	})
	return written, errors.Join(err, failed)
}

// push sends what is held, and b after it, and returns what the socket has not taken of b. All of it is in memory, so that the
// call does not wait.
func (i *Inner) push(b []byte) []byte {
	i.full = false
	for i.sendErrno == 0 && len(i.held)+len(b) > 0 {
		i.vectors = [2]Vector{VectorOf(i.held), VectorOf(b)}
		i.message.Iov = (*unix.Iovec)(unsafe.Pointer(&i.vectors))
		i.message.SetIovlen(len(i.vectors))
		n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(i.fd), uintptr(unsafe.Pointer(&i.message)), unix.MSG_NOSIGNAL)
		runtime.KeepAlive(b)
		switch errno {
		case 0:
			ofHeld := min(int(n), len(i.held))
			i.taken += uint64(n)
			i.sentHeld(ofHeld)
			b = b[int(n)-ofHeld:]
		case unix.EINTR:
		case unix.EAGAIN:
			i.full = true
			return b
		default:
			i.sendErrno = errno
		}
	}
	return b
}

// flush sends what is held, and reports whether the socket has taken all of it.
func (i *Inner) flush() (all bool, errno syscall.Errno) {
	i.sending.Lock()
	defer i.sending.Unlock()
	i.hold = false
	i.push(nil)
	return len(i.held) == 0, i.sendErrno
}

// setHold says whether another record follows at once.
func (i *Inner) setHold(on bool) {
	i.sending.Lock()
	defer i.sending.Unlock()
	i.hold = on
}

// progress says how many bytes of records there were so far, how many of them the socket has taken, and whether it takes no more.
func (i *Inner) progress() (written, taken uint64, full bool) {
	i.sending.Lock()
	defer i.sending.Unlock()
	return i.written, i.taken, i.full
}

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

// records follows a stream of TLS records by their headers: type, version and length in five bytes.
type records struct {
	header [recordHeader]byte
	have   int    // bytes of the header
	body   int    // bytes of the record that are still to come
	length int    // of the record's body
	count  uint64 // records of data, and of what follows a handshake
	whole  uint64 // bytes of plaintext in records that have come completely, at most
}

const (
	recordHeader = 5
	recordData   = 23 // the type of all records after the handshake
	// recordOverhead is what a record has beside its plaintext: the tag of the cipher and the inner type.
	recordOverhead = 17
)

// note follows the bytes of b.
func (r *records) note(b []byte) {
	for len(b) > 0 {
		if r.have < recordHeader {
			n := copy(r.header[r.have:], b)
			r.have += n
			b = b[n:]
			if r.have < recordHeader {
				return
			}
			r.length = int(r.header[3])<<8 | int(r.header[4])
			r.body = r.length
		}
		n := min(r.body, len(b))
		r.body -= n
		b = b[n:]
		if r.body == 0 {
			r.have = 0
			if r.header[0] == recordData {
				r.count++
				r.whole += uint64(max(r.length-recordOverhead, 0))
			}
		}
	}
}
