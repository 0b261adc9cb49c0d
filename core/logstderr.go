package core

import (
	"os"

	"golang.org/x/sys/unix"
)

// standardError is the output for lines that go to no file. It writes to the descriptor as it is by then: the host may put
// something else in its place.
type standardError struct{ file *os.File }

func (s *standardError) Write(line []byte) (n int, err error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	closed := raw.Control(func(fd uintptr) { n, err = writeLine(int(fd), line) })
	if closed != nil {
		return n, closed
	}
	return n, os.NewSyscallError("write", err)
}

// Close leaves standard error to the host.
func (*standardError) Close() error { return nil }

// writeLine writes all of a line, and waits until it can. It is no method of os.File, whose Write ends the process with
// SIGPIPE when nobody can read standard error any more, also where the host ignores that signal.
func writeLine(fd int, line []byte) (n int, err error) {
	for n < len(line) {
		written, err := unix.Write(fd, line[n:])
		switch {
		case err == nil:
			n += written
		case err == unix.EAGAIN: // somebody has made it non-blocking
			err = waitWritable(fd)
			if err != nil {
				return n, err
			}
		case err != unix.EINTR:
			return n, err
		}
	}
	return n, nil
}

func waitWritable(fd int) error {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
	if err == unix.EINTR {
		return nil
	}
	return err
}
