package sockio

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How an Inner writes records. In the second state, writing never waits:
//
//  1. Write holds a record while another one follows at once (setHold), and sends what is held otherwise (push).
//  2. What the socket does not take is kept. flush sends it later.

const (
	// maxBatch bounds the bytes of records that wait for the next one. One system call sends them all, and wakes the peer once.
	maxBatch = 128 << 10
	// maxHeld bounds what is held: records of one call, and what a peer can make crypto/tls answer while it reads nothing.
	maxHeld = maxBatch + 64<<10
)

// batch is room for the records of one system call. A connection has one only while it holds some.
type batch [maxBatch + maxPlaintext + recordHeader + recordOverhead]byte

var batches = sync.Pool{New: func() any { return new(batch) }}

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
