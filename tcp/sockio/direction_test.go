package sockio

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

func sockets(t testing.TB) (a, b *Socket) {
	t.Helper()
	connA, connB := tcptest.Connection(t)
	return socketOf(t, connA), socketOf(t, connB)
}

func socketOf(t testing.TB, conn Conn) *Socket {
	t.Helper()
	s, err := New(conn, NewProcessors(runtime.GOMAXPROCS(0)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestSocketGathersAndScatters(t *testing.T) {
	a, b := sockets(t)
	from, to := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	copy(from, "hello, world")
	n, err := a.Send([]Vector{VectorOf(from[:5]), VectorOf(from[5:7]), VectorOf(from[7:12])})
	require.NoError(t, err)
	require.Equal(t, 12, n)
	n, err = b.Receive([]Vector{VectorOf(to[:3]), VectorOf(to[100:200])})
	require.NoError(t, err)
	require.Equal(t, 12, n)
	require.Equal(t, "hel", string(to[:3]))
	require.Equal(t, "lo, world", string(to[100:109]))
}

func TestSocketUsesAtMostAsManyVectorsAsTheKernelTakes(t *testing.T) {
	a, b := sockets(t)
	from, to := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	v := make([]Vector, 2*MaxVectors)
	for i := range v {
		v[i] = VectorOf(from[i : i+1])
	}
	n, err := a.Send(v)
	require.NoError(t, err)
	require.Equal(t, MaxVectors, n)
	for i := range v {
		v[i] = VectorOf(to[i : i+1])
	}
	n, again, err := b.TryReceive(v)
	require.NoError(t, err)
	require.False(t, again)
	require.Equal(t, MaxVectors, n)
}

func TestSocketTriesWithoutWaiting(t *testing.T) {
	a, b := sockets(t)
	memory := tcptest.Mapped(t, 1<<20)
	_, again, err := b.TryReceive([]Vector{VectorOf(memory)})
	require.NoError(t, err)
	require.True(t, again)
	for again = false; !again; {
		_, again, err = a.TrySend([]Vector{VectorOf(memory)})
		require.NoError(t, err)
	}
}

func TestSocketWaitsUntilThereIsSomethingAndUntilThereIsRoom(t *testing.T) {
	a, b := sockets(t)
	from, to := tcptest.Mapped(t, 32<<20), tcptest.Mapped(t, 32<<20)
	for i := range from {
		from[i] = byte(i * 7)
	}
	sent := make(chan error, 1)
	go func() {
		for v := []Vector{VectorOf(from)}; len(v) > 0; {
			n, err := a.Send(v)
			if err != nil {
				sent <- err
				return
			}
			v = Advance(v, n)
		}
		sent <- nil
	}()
	for v := []Vector{VectorOf(to)}; len(v) > 0; {
		n, err := b.Receive(v)
		require.NoError(t, err)
		v = Advance(v, n)
	}
	require.NoError(t, <-sent)
	require.True(t, bytes.Equal(from, to))
}

func TestSocketReportsEndOfFile(t *testing.T) {
	a, b := sockets(t)
	memory := tcptest.Mapped(t, 4096)
	require.NoError(t, a.CloseWrite())
	_, err := b.Receive([]Vector{VectorOf(memory)})
	require.Equal(t, io.EOF, err)
	_, again, err := b.TryReceive([]Vector{VectorOf(memory)})
	require.Equal(t, io.EOF, err)
	require.False(t, again)
}

func TestSocketHeedsDeadlines(t *testing.T) {
	_, b := sockets(t)
	memory := tcptest.Mapped(t, 4096)
	require.NoError(t, b.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	_, err := b.Receive([]Vector{VectorOf(memory)})
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestSocketIsWokenByClose(t *testing.T) {
	_, b := sockets(t)
	memory := tcptest.Mapped(t, 4096)
	done := make(chan error)
	go func() {
		_, err := b.Receive([]Vector{VectorOf(memory)})
		done <- err
	}()
	require.NoError(t, b.Close())
	require.ErrorIs(t, <-done, net.ErrClosed)
}

func TestMemoryThatIsNotMappedIsAnErrorOfTheSocket(t *testing.T) {
	a, b := sockets(t)
	memory := tcptest.Mapped(t, 4096)
	bad := Vector{Base: 4096, Length: 10}
	_, err := a.Send([]Vector{bad})
	require.ErrorIs(t, err, syscall.EFAULT)
	_, err = a.Send([]Vector{VectorOf(memory[:10])})
	require.NoError(t, err)
	_, err = b.Receive([]Vector{bad})
	require.ErrorIs(t, err, syscall.EFAULT)
}

func TestSendingToAClosedPeerIsAnErrorAndNoSignal(t *testing.T) {
	a, b := sockets(t)
	memory := tcptest.Mapped(t, 4096)
	b.Reset()
	var err error
	for err == nil {
		_, err = a.Send([]Vector{VectorOf(memory)})
	}
	if !errors.Is(err, syscall.EPIPE) {
		require.ErrorIs(t, err, syscall.ECONNRESET)
	}
}

func TestSocketDoesNotAllocate(t *testing.T) {
	a, b := sockets(t)
	memory := tcptest.Mapped(t, 4096)
	v := make([]Vector, 2)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		v[0], v[1] = VectorOf(memory[:1000]), VectorOf(memory[1000:2000])
		if _, err := a.Send(v); err != nil {
			t.Error(err)
		}
		if _, err := b.Receive(v); err != nil {
			t.Error(err)
		}
	}))
}

func TestAdvanceConsumesAcrossVectorsAndSkipsEmptyOnes(t *testing.T) {
	v := []Vector{{100, 0}, {200, 5}, {300, 0}, {400, 7}}
	require.Equal(t, []Vector{{200, 5}, {300, 0}, {400, 7}}, Advance(v, 0))
	require.Equal(t, []Vector{{203, 2}, {300, 0}, {400, 7}}, Advance(v, 3))
	require.Equal(t, []Vector{{401, 6}}, Advance(v, 3))
	require.Empty(t, Advance(v, 8))
}
