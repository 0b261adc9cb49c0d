package sockio

import (
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How an Inner reads: with package net in the first state, and from the socket, without waiting, in the second one. A descriptor may
// come with the first bytes after the handshake.

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
