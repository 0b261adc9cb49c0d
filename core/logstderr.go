package core

import (
	"os"

	"golang.org/x/sys/unix"
)

// standardError is the output for lines without a file. It writes to whatever the descriptor is at that time: the program may
// replace it.
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

// Close does not close standard error: it belongs to the program.
func (*standardError) Close() error { return nil }

// writeLine writes all of a line, and waits until that is possible. os.File.Write would end the process with SIGPIPE when the
// other end of standard error is closed, even if the program ignores that signal.
func writeLine(fd int, line []byte) (n int, err error) {
	for n < len(line) {
		written, err := unix.Write(fd, line[n:])
		switch {
		case err == nil:
			n += written
		case err == unix.EAGAIN: // the descriptor was made non-blocking
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
