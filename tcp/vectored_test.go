package tcp

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mapped is memory outside the Go heap, as callers' memory is.
func mapped(t testing.TB, length int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// connection is both ends of a TCP connection.
func connection(t testing.TB) (a, b *net.TCPConn) {
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

func streams(t testing.TB) (a, b *stream) {
	t.Helper()
	connA, connB := connection(t)
	return streamOf(t, connA), streamOf(t, connB)
}

func streamOf(t testing.TB, conn plainConn) *stream {
	t.Helper()
	s, err := newStream(conn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.close() })
	return s
}

func TestSocketGathersAndScatters(t *testing.T) {
	a, b := streams(t)
	from, to := mapped(t, 4096), mapped(t, 4096)
	copy(from, "hello, world")
	n, err := a.send([]ioVector{vectorOf(from[:5]), vectorOf(from[5:7]), vectorOf(from[7:12])})
	require.NoError(t, err)
	require.Equal(t, 12, n)
	n, err = b.receive([]ioVector{vectorOf(to[:3]), vectorOf(to[100:200])})
	require.NoError(t, err)
	require.Equal(t, 12, n)
	require.Equal(t, "hel", string(to[:3]))
	require.Equal(t, "lo, world", string(to[100:109]))
}

func TestSocketUsesAtMostAsManyVectorsAsTheKernelTakes(t *testing.T) {
	a, b := streams(t)
	from, to := mapped(t, 4096), mapped(t, 4096)
	v := make([]ioVector, 2*maxGatherVectors)
	for i := range v {
		v[i] = vectorOf(from[i : i+1])
	}
	n, err := a.send(v)
	require.NoError(t, err)
	require.Equal(t, maxGatherVectors, n)
	for i := range v {
		v[i] = vectorOf(to[i : i+1])
	}
	n, again, err := b.tryReceive(v)
	require.NoError(t, err)
	require.False(t, again)
	require.Equal(t, maxGatherVectors, n)
}

func TestSocketTriesWithoutWaiting(t *testing.T) {
	a, b := streams(t)
	memory := mapped(t, 1<<20)
	_, again, err := b.tryReceive([]ioVector{vectorOf(memory)})
	require.NoError(t, err)
	require.True(t, again)
	for again = false; !again; {
		_, again, err = a.trySend([]ioVector{vectorOf(memory)})
		require.NoError(t, err)
	}
}

func TestSocketWaitsUntilThereIsSomethingAndUntilThereIsRoom(t *testing.T) {
	a, b := streams(t)
	from, to := mapped(t, 32<<20), mapped(t, 32<<20)
	for i := range from {
		from[i] = byte(i * 7)
	}
	sent := make(chan error, 1)
	go func() {
		for v := []ioVector{vectorOf(from)}; len(v) > 0; {
			n, err := a.send(v)
			if err != nil {
				sent <- err
				return
			}
			v = advance(v, n)
		}
		sent <- nil
	}()
	for v := []ioVector{vectorOf(to)}; len(v) > 0; {
		n, err := b.receive(v)
		require.NoError(t, err)
		v = advance(v, n)
	}
	require.NoError(t, <-sent)
	require.True(t, bytes.Equal(from, to))
}

func TestSocketReportsEndOfFile(t *testing.T) {
	a, b := streams(t)
	memory := mapped(t, 4096)
	require.NoError(t, a.closeWrite())
	_, err := b.receive([]ioVector{vectorOf(memory)})
	require.Equal(t, io.EOF, err)
	_, again, err := b.tryReceive([]ioVector{vectorOf(memory)})
	require.Equal(t, io.EOF, err)
	require.False(t, again)
}

func TestSocketHeedsDeadlines(t *testing.T) {
	_, b := streams(t)
	memory := mapped(t, 4096)
	require.NoError(t, b.setReadDeadline(time.Now().Add(10*time.Millisecond)))
	_, err := b.receive([]ioVector{vectorOf(memory)})
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestSocketIsWokenByClose(t *testing.T) {
	_, b := streams(t)
	memory := mapped(t, 4096)
	done := make(chan error)
	go func() {
		_, err := b.receive([]ioVector{vectorOf(memory)})
		done <- err
	}()
	require.NoError(t, b.close())
	require.ErrorIs(t, <-done, net.ErrClosed)
}

func TestMemoryThatIsNotMappedIsAnErrorOfTheSocket(t *testing.T) {
	a, b := streams(t)
	memory := mapped(t, 4096)
	bad := ioVector{base: 4096, length: 10}
	_, err := a.send([]ioVector{bad})
	require.ErrorIs(t, err, syscall.EFAULT)
	_, err = a.send([]ioVector{vectorOf(memory[:10])})
	require.NoError(t, err)
	_, err = b.receive([]ioVector{bad})
	require.ErrorIs(t, err, syscall.EFAULT)
}

func TestSendingToAClosedPeerIsAnErrorAndNoSignal(t *testing.T) {
	a, b := streams(t)
	memory := mapped(t, 4096)
	b.abandon()
	var err error
	for err == nil {
		_, err = a.send([]ioVector{vectorOf(memory)})
	}
	if !errors.Is(err, syscall.EPIPE) {
		require.ErrorIs(t, err, syscall.ECONNRESET)
	}
}

func TestSocketDoesNotAllocate(t *testing.T) {
	a, b := streams(t)
	memory := mapped(t, 4096)
	v := make([]ioVector, 2)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		v[0], v[1] = vectorOf(memory[:1000]), vectorOf(memory[1000:2000])
		if _, err := a.send(v); err != nil {
			t.Error(err)
		}
		if _, err := b.receive(v); err != nil {
			t.Error(err)
		}
	}))
}

func TestAdvanceConsumesAcrossVectorsAndSkipsEmptyOnes(t *testing.T) {
	v := []ioVector{{100, 0}, {200, 5}, {300, 0}, {400, 7}}
	require.Equal(t, []ioVector{{200, 5}, {300, 0}, {400, 7}}, advance(v, 0))
	require.Equal(t, []ioVector{{203, 2}, {300, 0}, {400, 7}}, advance(v, 3))
	require.Equal(t, []ioVector{{401, 6}}, advance(v, 3))
	require.Empty(t, advance(v, 8))
}
