// Package shut ends sockets for every process that has them.
//
// close(2) ends a connection or a listener only when no other process has its descriptor. A child that was forked without
// exec has all of its parent's: as long as it lived, peers would wait for what the parent has closed.
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

// Listener stops a listener and closes it: who tries to connect is refused, and connections that nobody has accepted are
// reset. Who waits to accept one may get EINVAL before net.ErrClosed.
func Listener(l Conn) error {
	_ = control(l, stop) // fails on one that is closed
	return l.Close()
}

func stop(fd int) error {
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
		return os.NewSyscallError("shutdown", err)
	}
	// Over TCP the kernel has reset those that wait. On a Unix-domain socket they would wait on; no new ones come.
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
	_ = control(c, Socket) // fails on one that has ended already
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

// Socket ends a connection as close(2) does where no other process has it: the peer can read what was sent to it, and then
// the end. Over TCP it gets a reset instead when it has sent something that nobody has read.
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

// Reset ends a connection in a way that no peer takes for an orderly end: over TCP the peer gets a reset, and what the
// kernel has not sent is dropped. A Unix-domain socket has no reset: its peer finds the end.
func Reset(fd int) error {
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_UNIX {
		return shutdown(fd)
	}
	err := disconnect(fd)
	if err != nil { // then at least the last close resets it
		linger := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		return errors.Join(err, os.NewSyscallError("setsockopt", linger))
	}
	return nil
}

// disconnect has the kernel reset a TCP connection at once, whoever else has the socket.
func disconnect(fd int) error {
	nobody := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&nobody)), unsafe.Sizeof(nobody))
	if errno != 0 {
		return os.NewSyscallError("connect", errno)
	}
	return nil
}
