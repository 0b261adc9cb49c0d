// Package porttest has TCP ports of this machine for tests.
package porttest

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Bound is a socket with a port of 127.0.0.1 that does not listen. So nobody answers at the port, and nobody else gets it before the
// test ends, which closes the socket.
func Bound(t testing.TB) (fd, port int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	bound, err := unix.Getsockname(fd)
	require.NoError(t, err)
	return fd, bound.(*unix.SockaddrInet4).Port
}
