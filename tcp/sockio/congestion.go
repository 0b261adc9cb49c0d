package sockio

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Congestion is the name of an algorithm by which connections find how fast they may send. "" is the system's choice.
type Congestion string

// Set sets the algorithm for a socket. It fails where the system does not have it, or does not allow it.
func (c Congestion) Set(socket syscall.Conn) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control("", "", raw)
}

// Control is Set as the Control function of a net.Dialer.
func (c Congestion) Control(_, _ string, raw syscall.RawConn) (err error) {
	if c == "" {
		return nil
	}
	held := raw.Control(func(fd uintptr) {
		err = c.explain(unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, string(c)))
	})
	return errors.Join(held, err)
}

// explain says why the system does not take the algorithm; nil for nil.
func (c Congestion) explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("this system has no congestion control %.40q, and has those of net.ipv4.tcp_available_congestion_control: %w", string(c), err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("this process may not use the congestion control %.40q, only those of net.ipv4.tcp_allowed_congestion_control: %w", string(c), err)
	}
	return os.NewSyscallError("setsockopt", err)
}
