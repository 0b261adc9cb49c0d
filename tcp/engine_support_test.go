package tcp

import (
	"os"
	"strconv"
	"testing"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// transportOf is the transport of an engine made by engine.
func transportOf(t testing.TB, e *core.Engine) *Transport {
	t.Helper()
	installed, err := e.Install("tcp", nil)
	require.NoError(t, err)
	return installed.(*Transport)
}

// onlyPeer is the one peer that the engine has had to do with.
func onlyPeer(t testing.TB, e *core.Engine) *peer {
	t.Helper()
	all := transportOf(t, e).allPeers()
	require.Len(t, all, 1)
	return all[0]
}

// newEngine is an engine with this transport.
func newEngine(t testing.TB, change ...func(*core.Config)) *core.Engine {
	return tcptest.Engine(t, Open, change...)
}

// socketOf is the socket of a connection, which the test closes.
func socketOf(t testing.TB, conn sockio.Conn) *sockio.Socket {
	t.Helper()
	s, err := sockio.New(conn, processors)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ownSocket is one end of a connection that this process has.
type ownSocket struct {
	file     int
	accepted bool
}

// socketsOf are the ends of the connections to a port of this process that it has.
func socketsOf(port int) (found []ownSocket) {
	all, _ := os.ReadDir("/proc/self/fd")
	for _, one := range all {
		file, _ := strconv.Atoi(one.Name())
		local, err := unix.Getsockname(file)
		if err != nil {
			continue
		}
		remote, err := unix.Getpeername(file)
		if err == nil && (portOf(local) == port || portOf(remote) == port) {
			found = append(found, ownSocket{file, portOf(local) == port})
		}
	}
	return found
}

func portOf(a unix.Sockaddr) int {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}
