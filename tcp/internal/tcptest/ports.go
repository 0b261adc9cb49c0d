package tcptest

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BlockedPort is a data port that lets nobody connect, and refuses nobody either.
func BlockedPort(t testing.TB) (port int) {
	t.Helper()
	fd, port := boundSocket(t)
	require.NoError(t, syscall.Listen(fd, 0))
	addr := net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	for { // until the backlog is full
		conn, err := net.DialTimeout("tcp", addr.String(), 100*time.Millisecond)
		if err != nil {
			var timeout net.Error
			require.True(t, errors.As(err, &timeout) && timeout.Timeout(), "%v", err)
			return addr.Port
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}

// ClosedPort is one at which nobody answers, and which nobody else gets before the test ends.
func ClosedPort(t testing.TB) int {
	t.Helper()
	_, port := boundSocket(t)
	return port
}

// boundSocket is a socket with a port of this machine that does not listen. It is closed when the test ends.
func boundSocket(t testing.TB) (fd, port int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	bound, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	return fd, bound.(*syscall.SockaddrInet4).Port
}
