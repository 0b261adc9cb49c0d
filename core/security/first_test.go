package security

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestTheFirstBytesTellTLSFromOtherProtocols(t *testing.T) {
	for first, begins := range map[string]bool{
		"\x16\x03\x01\x00\x05\x01": true, "\x16\x03\x03\x02\x00\x01\x00": true,
		"\x16\x03\x01\x00\x05\x02": false, "\x16\x03\x01\x00\x05": false, "\x16": false, "": false, "GET / HTTP/1.1": false,
		"\x16\x03\x00\x00\x00\x00\x00\x00": false, // a request of 790 bytes
	} {
		for _, whole := range []bool{true, false} {
			client, server := pipeOfTCP(t)
			if whole { // all has come, with the end, before anybody looks
				_, err := client.Write([]byte(first))
				require.NoError(t, err)
				require.NoError(t, client.CloseWrite())
				raw, err := server.SyscallConn()
				require.NoError(t, err)
				require.NoError(t, raw.Control(func(fd uintptr) {
					_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}, int(patience/time.Millisecond))
				}))
				require.NoError(t, err)
			} else {
				go func() {
					for _, b := range []byte(first) {
						_, _ = client.Write([]byte{b})
					}
					_ = client.CloseWrite()
				}()
			}
			require.NoError(t, server.SetReadDeadline(time.Now().Add(patience)))
			found, err := BeginsTLS(server)
			require.NoError(t, err)
			require.Equal(t, begins, found, "%q", first)
			rest := make([]byte, len(first)+1)
			n, got := 0, 0
			for n < len(first) && got >= 0 {
				got, err = server.Read(rest[n:])
				require.NoError(t, err)
				n += got
			}
			require.Equal(t, first, string(rest[:n]), "nothing was taken")
		}
	}
}

func pipeOfTCP(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer l.Close()
	client, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	require.NoError(t, err)
	server, err = l.AcceptTCP()
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client, server
}
