// Package shut ends sockets for every process that has them.
//
// close(2) ends a connection or a listener only if no other process has its descriptor. A child that was forked without exec has
// all descriptors of its parent: while the child lives, peers would go on to wait for a connection that the parent has closed.
package shut

import (
	"errors"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn is a net.TCPConn or a net.UnixConn.
type Conn interface {
	io.Closer
	syscall.Conn
}

// Listener stops a listener and closes it: new connections are refused, and connections that were not accepted are reset. A call
// of Accept that waits may return EINVAL before net.ErrClosed.
func Listener(l Conn) error {
	_ = control(l, stop) // fails for a closed one
	return l.Close()
}

func stop(fd int) error {
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
		return os.NewSyscallError("shutdown", err)
	}
	// A TCP listener's waiting connections were reset by the kernel. Those of a Unix-domain socket were not; no new ones come.
	for {
		conn, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil
		}
		_ = errors.Join(Reset(conn), unix.Close(conn))
	}
}

// Close ends a connection as Socket does, and closes it.
func Close(c Conn) error {
	_ = control(c, Socket) // fails for one that has already ended
	return c.Close()
}

// Abandon ends a connection as Reset does, and closes it.
func Abandon(c Conn) error {
	_ = control(c, Reset)
	return c.Close()
}

func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	closed := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(closed, err)
}

// Socket ends a connection as close(2) does if no other process has it: the peer can read the bytes that were sent to it, and then
// the end. A TCP peer gets a reset instead if it has sent bytes that were not read.
func Socket(fd int) error {
	if unread, err := unix.IoctlGetInt(fd, unix.SIOCINQ); err == nil && unread > 0 {
		return Reset(fd)
	}
	return shutdown(fd)
}

func shutdown(fd int) error {
	err := unix.Shutdown(fd, unix.SHUT_RDWR)
	if err == unix.ENOTCONN { // the peer has reset it
		return nil
	}
	return os.NewSyscallError("shutdown", err)
}

// Reset ends a connection so that the peer cannot take it for an orderly end: a TCP peer gets a reset, and bytes that the kernel
// has not sent are dropped. A Unix-domain socket has no reset: its peer reads the end.
func Reset(fd int) error {
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_UNIX {
		return shutdown(fd)
	}
	err := disconnect(fd)
	if err != nil { // the last close, of whichever process, resets it then
		linger := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		return errors.Join(err, os.NewSyscallError("setsockopt", linger))
	}
	return nil
}

// disconnect makes the kernel reset a TCP connection at once, also if other processes have the socket.
func disconnect(fd int) error {
	nobody := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&nobody)), unsafe.Sizeof(nobody))
	if errno != 0 {
		return os.NewSyscallError("connect", errno)
	}
	return nil
}
