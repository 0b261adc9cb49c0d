package tcp

import (
	"net"
	"strconv"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// dataPort connects to the data port of an engine on an address of this machine, from another one.
func dataPort(t *testing.T, e *core.Engine, from, to string) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", net.JoinHostPort(to, strconv.Itoa(e.Descriptor().DataPort)))
	if err == nil {
		t.Cleanup(func() { _ = conn.Close() })
	}
	return conn, err
}

func TestConnectionsFromNetworksThatMayNotConnectTakeNoSession(t *testing.T) {
	e := newEngine(t, func(c *core.Config) { c.Allow, c.MaxSessions = "127.0.0.9", 1 })
	memory := tcptest.Mapped(t, 4096)
	require.NoError(t, e.Register(hostmem.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
	for range 8 {
		stranger, err := dataPort(t, e, "127.0.0.3", "127.0.0.1")
		if err == nil {
			_, err = stranger.Read(make([]byte, 1))
		}
		require.ErrorIs(t, err, unix.ECONNRESET)
	}
	conn, err := dataPort(t, e, "127.0.0.9", "127.0.0.1")
	require.NoError(t, err)
	peer := tcptest.NewClient(t, conn.(*net.TCPConn))
	peer.Send(tcptest.ReadV1(memory))
	peer.Expect(memory)
}

func TestTheDataPortIsOpenOnEveryAddressThatIsListenedOn(t *testing.T) {
	e := newEngine(t, func(c *core.Config) { c.Listen = "127.0.0.1,127.0.0.2" })
	memory := tcptest.Mapped(t, 4096)
	require.NoError(t, e.Register(hostmem.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
	for _, to := range []string{"127.0.0.2", "127.0.0.1"} {
		conn, err := dataPort(t, e, "127.0.0.1", to)
		require.NoError(t, err)
		peer := tcptest.NewClient(t, conn.(*net.TCPConn))
		peer.Send(tcptest.ReadV1(memory))
		peer.Expect(memory)
	}
	_, err := dataPort(t, e, "127.0.0.1", "127.0.0.3")
	require.ErrorIs(t, err, unix.ECONNREFUSED)
}
