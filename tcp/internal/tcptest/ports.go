package tcptest

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"kvferry/internal/porttest"

	"github.com/stretchr/testify/require"
)

// BlockedPort is a data port that lets nobody connect, and refuses nobody either.
func BlockedPort(t testing.TB) (port int) {
	t.Helper()
	fd, port := porttest.Bound(t)
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
	_, port := porttest.Bound(t)
	return port
}
