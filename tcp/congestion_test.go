package tcp

import (
	"net"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// controlsOf is the congestion control of each end of the connections to a port of this process.
func controlsOf(t *testing.T, port int) (names []string) {
	t.Helper()
	for _, one := range tcptest.SocketsOf(port) {
		name, err := unix.GetsockoptString(one.File, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		require.NoError(t, err)
		names = append(names, name)
	}
	return names
}

func TestDataConnectionsAreUnderTheChosenCongestionControl(t *testing.T) {
	reno := func(c *core.Config) { c.Congestion = "reno" }
	target, e := newEngine(t, reno), newEngine(t, reno, tcptest.OneLane)
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, target.Name()), far)))
	require.Equal(t, []string{"reno", "reno"}, controlsOf(t, target.Descriptor().DataPort))
}

func TestACongestionControlThatIsNotThereIsToldOnceAndLeftOut(t *testing.T) {
	observed, logs := observer.New(zap.WarnLevel)
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	log := zap.New(observed)
	require.Empty(t, congestionOf(&core.Config{Congestion: "no such thing"}, listener, log))
	require.Equal(t, 1, logs.Len())
	require.Contains(t, logs.All()[0].Message, "KVFERRY_TCP_CONGESTION has no effect")
	require.Contains(t, logs.All()[0].ContextMap()["error"], `this system has no congestion control "no such thing"`)
	require.Empty(t, congestionOf(&core.Config{}, listener, log))
	require.Equal(t, 1, logs.Len())
}
