package security

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// firstBytes is how many bytes tell TLS from the protocols of both ports.
const firstBytes = 6

// isClientHello says whether a connection begins with TLS, by its first bytes; known is false where more of them are needed. They
// are the type of the record (handshake), the major version, and after three other bytes the type of the message (ClientHello).
// As a request of the data port they would ask for more than a TiB, and as a frame of the handshake port announce as much.
func isClientHello(first []byte) (is, known bool) {
	for i, want := range [firstBytes]int{0x16, 0x03, -1, -1, -1, 0x01} {
		if i >= len(first) {
			return false, false
		}
		if want >= 0 && int(first[i]) != want {
			return false, true
		}
	}
	return true, true
}

// IsClientHello reports whether a connection begins with TLS. first has at least six of its bytes.
func IsClientHello(first []byte) bool {
	is, _ := isClientHello(first)
	return is
}

// Conn is a connection whose first bytes can be looked at: a *net.TCPConn or a *net.UnixConn.
type Conn interface {
	net.Conn
	syscall.Conn
}

// BeginsTLS waits for the first bytes of a connection, and reports whether they begin TLS. The bytes are still there to be
// read afterwards. The connection's read deadline bounds the wait. A connection that ends early does not begin TLS.
func BeginsTLS(conn Conn) (begins bool, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, err
	}
	var first [firstBytes]byte
	var failed error
	seen := 0
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, err := unix.Recvfrom(int(fd), first[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return false
			case err != nil:
				failed = os.NewSyscallError("recvfrom", err)
				return true
			}
			var known bool
			if begins, known = isClientHello(first[:n]); known || n == 0 {
				return true
			}
			if !ended(int(fd)) {
				return false
			}
			if n == seen { // nothing has come with the end
				return true
			}
			seen = n
		}
	})
	return begins, errors.Join(err, failed)
}

// ended reports whether the peer has ended the stream, of which bytes are still to be read.
func ended(fd int) bool {
	which := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(which, 0)
	return err == nil && n == 1
}

// ErrUnexpectedTLS is why an engine without security refuses a connection.
var ErrUnexpectedTLS = errors.New("the peer begins TLS, and security is off here: KVFERRY_SECRET_FILE or KVFERRY_TLS_CERT is not set, or KVFERRY_SECURITY is off")

// ErrPlain is why an engine refuses a connection without TLS.
var ErrPlain = errors.New("the peer does not begin TLS, and KVFERRY_SECURITY=require demands it here: it is no kvferry engine, or has no secret and no certificate")
