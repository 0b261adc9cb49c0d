package sockio

import (
	"net"
	"os"
	"testing"

	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func sendBuffer(t *testing.T, s *Socket) (size int) {
	t.Helper()
	require.NoError(t, s.Control(func(socket int) (err error) {
		size, err = unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_SNDBUF)
		return os.NewSyscallError("getsockopt", err)
	}))
	return size
}

// withLargestBuffer makes the system's limit another one.
func withLargestBuffer(t *testing.T, size int) {
	t.Helper()
	before := largestBuffer
	largestBuffer = func() int { return size }
	t.Cleanup(func() { largestBuffer = before })
}

func TestWhatWaitsToBeSentToThisHostIsBounded(t *testing.T) {
	given := 2 * min(onHostBuffer, largestBuffer()) // the kernel doubles it
	require.Positive(t, given)
	withLargestBuffer(t, onHostBuffer)
	a, b := sockets(t)
	require.Equal(t, given, sendBuffer(t, a))
	require.Equal(t, given, sendBuffer(t, b))
}

func TestTheKernelChoosesTheBufferWhereTheSystemDoesNotAllowTheSize(t *testing.T) {
	withLargestBuffer(t, onHostBuffer-1)
	conn, _ := tcptest.Connection(t)
	raw, err := conn.SyscallConn()
	require.NoError(t, err)
	var chosen int
	require.NoError(t, raw.Control(func(socket uintptr) {
		chosen, err = unix.GetsockoptInt(int(socket), unix.SOL_SOCKET, unix.SO_SNDBUF)
	}))
	require.NoError(t, err)
	require.Equal(t, chosen, sendBuffer(t, socketOf(t, conn)))
}

func TestAConnectionToAnotherAddressOfThisHostIsNoConnectionWithin(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	for local, within := range map[string]bool{"127.0.0.1": true, "127.0.0.2": false} {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
		conn, err := dialer.Dial("tcp", listener.Addr().String())
		require.NoError(t, err)
		require.Equal(t, within, staysOnHost(conn.(*net.TCPConn)))
		require.NoError(t, conn.Close())
	}
}
