package shut

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// longWait is the limit for steps that take a moment.
const longWait = time.Minute

// inherit gives the socket a second descriptor, as a forked child has one, until the test ends.
func inherit(t *testing.T, c syscall.Conn) {
	t.Helper()
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		inherited, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(inherited) })
	}))
}

// listener is a net.TCPListener or a net.UnixListener.
type listener interface {
	net.Listener
	syscall.Conn
}

func listen(t *testing.T, network string) listener {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "socket")
	}
	l, err := net.Listen(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l.(listener)
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, c.SetDeadline(time.Now().Add(longWait)))
	t.Cleanup(func() { c.Close() })
	return c
}

type connection interface {
	Conn
	io.ReadWriter
}

// pair is the two ends of a connection, of which the second is to be shut.
func pair(t *testing.T, network string) (peer net.Conn, mine connection) {
	t.Helper()
	l := listen(t, network)
	peer = dial(t, l)
	c, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return peer, c.(connection)
}

func TestAListenerThatAnotherProcessHasTakesNoConnections(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			l := listen(t, network)
			inherit(t, l)
			waiting := dial(t, l)
			if u, ok := l.(*net.UnixListener); ok {
				u.SetUnlinkOnClose(false) // so that there is something to connect to
			}
			require.NoError(t, Listener(l))
			_, err := waiting.Read(make([]byte, 1))
			require.Error(t, err)
			assert.False(t, isTimeout(err), "%v", err)
			_, err = net.Dial(network, l.Addr().String())
			assert.ErrorIs(t, err, syscall.ECONNREFUSED)
			assert.Error(t, Listener(l), "it is closed")
		})
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestThePortOfAListenerThatAnotherProcessHasIsFree(t *testing.T) {
	l := listen(t, "tcp")
	inherit(t, l)
	require.NoError(t, Listener(l))
	again, err := net.Listen("tcp", l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, again.Close())
}

func TestAGoroutineThatWaitsToAcceptIsWoken(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		l := listen(t, network)
		inherit(t, l)
		woken := make(chan error)
		go func() {
			_, err := l.Accept()
			woken <- err
		}()
		require.NoError(t, Listener(l))
		if err := <-woken; !errors.Is(err, net.ErrClosed) {
			assert.ErrorIs(t, err, syscall.EINVAL)
		}
	}
}

func TestTheEndOfAConnectionThatAnotherProcessHasReachesThePeer(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		peer, mine := pair(t, network)
		inherit(t, mine)
		_, err := mine.Write([]byte("last words"))
		require.NoError(t, err)
		require.NoError(t, Close(mine))
		text, err := io.ReadAll(peer)
		require.NoError(t, err)
		assert.Equal(t, "last words", string(text))
	}
}

func TestAPeerWhoseBytesNobodyHasReadGetsAReset(t *testing.T) {
	peer, mine := pair(t, "tcp")
	inherit(t, mine)
	_, err := peer.Write([]byte("ab"))
	require.NoError(t, err)
	_, err = mine.Read(make([]byte, 1)) // both have come
	require.NoError(t, err)
	require.NoError(t, Close(mine))
	_, err = peer.Read(make([]byte, 1))
	assert.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestAnAbandonedConnectionThatAnotherProcessHasIsReset(t *testing.T) {
	peer, mine := pair(t, "tcp")
	inherit(t, mine)
	require.NoError(t, Abandon(mine))
	_, err := peer.Read(make([]byte, 1))
	assert.ErrorIs(t, err, syscall.ECONNRESET)

	peer, mine = pair(t, "unix")
	inherit(t, mine)
	require.NoError(t, Abandon(mine))
	_, err = peer.Read(make([]byte, 1))
	assert.Equal(t, io.EOF, err)
}

func TestAConnectionThatThePeerHasResetIsClosedAllTheSame(t *testing.T) {
	for _, end := range []func(Conn) error{Close, Abandon} {
		peer, mine := pair(t, "tcp")
		require.NoError(t, Abandon(peer.(*net.TCPConn)))
		_, err := mine.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.NoError(t, end(mine))
		require.Error(t, end(mine), "it is closed")
	}
}
