package address

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"kvferry/core/shut"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// listenFor listens until the test ends.
func listenFor(t *testing.T, o Options) *Listener {
	t.Helper()
	o.Backlog = 16
	l, err := Listen(context.Background(), o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = shut.Listener(l) })
	return l
}

// dialFrom connects to a port of an address of this machine, from another one.
func dialFrom(t *testing.T, from, to string, port int) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", net.JoinHostPort(to, strconv.Itoa(port)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
	return conn
}

func portOf(l *Listener) int { return l.Addr().(*net.TCPAddr).Port }

func TestAConnectionFromElsewhereIsResetAndTheNextOneAccepted(t *testing.T) {
	for name, hosts := range map[string][]string{"one address": {"127.0.0.1"}, "two addresses": {"127.0.0.1", "127.0.0.2"}} {
		t.Run(name, func(t *testing.T) {
			core, lines := observer.New(zap.WarnLevel)
			l := listenFor(t, Options{Hosts: hosts, Allow: Networks{netip.MustParsePrefix("127.0.0.4/32")}, Log: zap.New(core)})
			strangers := 2 * refusalLines
			for range strangers {
				dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 3)}}
				stranger, err := dialer.Dial("tcp", l.Addr().String())
				if err != nil { // the reset may be that early
					assert.ErrorIs(t, err, unix.ECONNRESET)
					continue
				}
				t.Cleanup(func() { _ = stranger.Close() })
				if len(hosts) == 1 { // nobody else accepts
					peer := dialFrom(t, "127.0.0.4", "127.0.0.1", portOf(l))
					conn, err := l.AcceptTCP()
					require.NoError(t, err)
					assert.Equal(t, peer.LocalAddr().String(), conn.RemoteAddr().String())
					require.NoError(t, conn.Close())
				}
				_, err = stranger.Read(make([]byte, 1))
				assert.ErrorIs(t, err, unix.ECONNRESET)
			}
			require.Eventually(t, func() bool { return l.Refused() == uint64(strangers) }, 30*time.Second, time.Millisecond)
			require.NoError(t, shut.Listener(l))
			require.Equal(t, refusalLines, lines.Len(), "strangers cannot fill a disk")
			fields := lines.All()[0].ContextMap()
			assert.Contains(t, fields["peer"], "127.0.0.3:")
			assert.Equal(t, "127.0.0.4/32", fields["KVFERRY_ALLOW"])
		})
	}
}

func TestOnePortIsOpenOnSeveralAddresses(t *testing.T) {
	l := listenFor(t, Options{Hosts: []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}})
	for _, host := range []string{"127.0.0.2", "127.0.0.1", "127.0.0.3", "127.0.0.2"} {
		peer := dialFrom(t, "127.0.0.1", host, portOf(l))
		conn, err := l.AcceptTCP()
		require.NoError(t, err)
		assert.Equal(t, peer.RemoteAddr().String(), conn.LocalAddr().String())
		require.NoError(t, conn.Close())
	}
	_, err := net.Dial("tcp", net.JoinHostPort("127.0.0.4", strconv.Itoa(portOf(l))))
	assert.ErrorIs(t, err, unix.ECONNREFUSED)
}

func TestAPortThatIsTakenOnOneAddressIsTakenOnNone(t *testing.T) {
	held, minPort, maxPort := holdPorts(t, 4)
	for _, l := range held[1:] {
		require.NoError(t, l.Close())
	}
	for range 8 { // picks ports at random
		l, err := Listen(context.Background(), Options{Hosts: []string{"127.0.0.5", "127.0.0.1"}, MinPort: minPort, MaxPort: maxPort})
		require.NoError(t, err)
		assert.NotEqual(t, minPort, portOf(l))
		require.NoError(t, l.Close())
	}
	_, err := Listen(context.Background(), Options{Hosts: []string{"127.0.0.5", "127.0.0.1"}, MinPort: minPort, MaxPort: minPort})
	require.ErrorIs(t, err, unix.EADDRINUSE)
	free, err := net.Listen("tcp", net.JoinHostPort("127.0.0.5", strconv.Itoa(minPort)))
	require.NoError(t, err, "the other address has been given back")
	require.NoError(t, free.Close())
}

func TestAListenerThatIsClosedAcceptsNothing(t *testing.T) {
	for _, hosts := range [][]string{{"127.0.0.1"}, {"127.0.0.1", "127.0.0.2"}} {
		l := listenFor(t, Options{Hosts: hosts})
		failed := make(chan error)
		go func() {
			_, err := l.AcceptTCP()
			failed <- err
		}()
		waiting := dialFrom(t, "127.0.0.1", "127.0.0.1", portOf(l))
		require.NoError(t, <-failed)
		second := dialFrom(t, "127.0.0.1", "127.0.0.1", portOf(l)) // in the backlog, or accepted for a later call
		require.NoError(t, shut.Listener(l))
		_, err := l.AcceptTCP()
		assert.Error(t, err)
		_, err = second.Read(make([]byte, 1))
		assert.ErrorIs(t, err, unix.ECONNRESET)
		_, err = net.Dial("tcp", l.Addr().String())
		assert.ErrorIs(t, err, unix.ECONNREFUSED)
		require.NoError(t, waiting.Close())
		assert.Error(t, l.Close(), "it is closed")
	}
}

func TestAllIPv4AddressesAreNotAllAddresses(t *testing.T) {
	if !localAddresses().has(netip.IPv6Loopback()) {
		t.Skip("no IPv6 on the loopback interface")
	}
	l := listenFor(t, Options{Hosts: []string{"0.0.0.0"}})
	_, err := net.Dial("tcp", net.JoinHostPort("::1", strconv.Itoa(portOf(l))))
	assert.ErrorIs(t, err, unix.ECONNREFUSED)
	l = listenFor(t, Options{Hosts: []string{"::"}})
	dialFrom(t, "127.0.0.1", "127.0.0.1", portOf(l))
	dialFrom(t, "::1", "::1", portOf(l))
}

func TestSocketOptionsGoToAllSocketsOfAListener(t *testing.T) {
	l := listenFor(t, Options{Hosts: []string{"127.0.0.1", "127.0.0.2"}})
	raw, err := l.SyscallConn()
	require.NoError(t, err)
	sockets := 0
	require.NoError(t, raw.Control(func(fd uintptr) {
		listens, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		require.NoError(t, err)
		sockets += listens
	}))
	assert.Equal(t, 2, sockets)
}
