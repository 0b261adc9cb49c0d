package tcp

import (
	"errors"
	"net"
	"os"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// congestion is the name of the algorithm by which data connections find how fast they may send; "" is the system's. The
// kernel takes it from the listening socket for the connections that are accepted.
type congestion string

// chosen is the algorithm by that name if the listener may have it.
func chosen(name string, listener *net.TCPListener, log *zap.Logger) congestion {
	if name == "" {
		return ""
	}
	raw, err := listener.SyscallConn()
	if err == nil {
		err = congestion(name).control("", "", raw)
	}
	if err != nil {
		log.Warn("data connections are under the system's congestion control",
			zap.String("KVFERRY_TCP_CONGESTION", name), zap.Error(err))
		return ""
	}
	return congestion(name)
}

// control sets it for a socket. It is the Control function of a net.Dialer.
func (c congestion) control(_, _ string, raw syscall.RawConn) (err error) {
	if c == "" {
		return nil
	}
	held := raw.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, string(c)))
	})
	return errors.Join(held, err)
}
