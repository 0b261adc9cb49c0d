package tcp

import (
	"net"
	"testing"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

func congestionOf(t *testing.T, s *sockio.Socket) (name string) {
	t.Helper()
	require.NoError(t, s.Control(func(socket int) (err error) {
		name, err = unix.GetsockoptString(socket, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		return err
	}))
	return name
}

func TestDataConnectionsAreUnderTheChosenCongestionControl(t *testing.T) {
	reno := func(c *core.Config) { c.Congestion = "reno" }
	target, e := engine(t, reno), engine(t, reno, oneLane)
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	require.NoError(t, target.Register(sockio.AddressOf(far), uint64(len(far)), "cpu:0", true))
	completes(t, submit(t, e, ask(core.Write, near, open(t, e, target.Name()), far)))
	require.Equal(t, "reno", congestionOf(t, lanes(t, e)[0].conn.Socket))
	serving := transportOf(t, target).target
	serving.mu.Lock()
	defer serving.mu.Unlock()
	require.Len(t, serving.sessions, 1)
	for s := range serving.sessions {
		require.Equal(t, "reno", congestionOf(t, s.conn))
	}
}

func TestACongestionControlThatIsNotThereIsToldOnceAndLeftOut(t *testing.T) {
	observed, logs := observer.New(zap.WarnLevel)
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	log := zap.New(observed)
	require.Empty(t, chosen("no such thing", listener, log))
	require.Equal(t, 1, logs.Len())
	require.Equal(t, "no such thing", logs.All()[0].ContextMap()["KVFERRY_TCP_CONGESTION"])
	require.Empty(t, chosen("", listener, log))
	require.Equal(t, 1, logs.Len())
}
