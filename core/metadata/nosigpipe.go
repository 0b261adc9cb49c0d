package metadata

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sendAll writes all of b, within the connection's write deadline. Unlike Write it raises no SIGPIPE when the peer has
// closed: the program that has loaded this library may have set that signal to its default action, which ends the process.
func sendAll(conn syscall.Conn, b []byte) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		b, failed = sendSome(int(fd), b)
		return failed != unix.EAGAIN
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("sendmsg", failed)
}

// sendSome sends until the socket's buffer is full, and returns the rest.
func sendSome(fd int, b []byte) ([]byte, error) {
	for len(b) > 0 {
		n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return b, err
		}
		b = b[n:]
	}
	return b, nil
}
