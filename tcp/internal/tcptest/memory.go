// Package tcptest has what the tests of several packages of the transport share.
package tcptest

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Patience is how long tests wait for what must happen.
const Patience = 20 * time.Second

// Mapped is memory outside the Go heap, as callers' memory is.
func Mapped(t testing.TB, length int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// Connection is both ends of a TCP connection.
func Connection(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer func() { require.NoError(t, listener.Close()) }()
	a, err = net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
	require.NoError(t, err)
	b, err = listener.AcceptTCP()
	require.NoError(t, err)
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

// Pattern is bytes that differ from place to place.
func Pattern(length int, seed byte) []byte {
	b := make([]byte, length)
	for i := range b {
		b[i] = byte(i*31>>3) + byte(i) ^ seed
	}
	return b
}

func Fill(b []byte, seed byte) { copy(b, Pattern(len(b), seed)) }

func Unmap(t testing.TB, b []byte) {
	t.Helper()
	require.NoError(t, unix.Mprotect(b, unix.PROT_NONE))
}
