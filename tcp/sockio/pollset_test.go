package sockio

import (
	"bytes"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// openFiles is how many descriptors are open, and one more.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

// requireNoneDelivering waits until no goroutine waits for a set.
func requireNoneDelivering(t *testing.T) {
	t.Helper()
	stacks := make([]byte, 1<<20)
	require.Eventually(t, func() bool {
		return !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("sockio.setOf.func1()"))
	}, tcptest.Patience, time.Millisecond)
}

func TestASocketTakesOneDescriptor(t *testing.T) {
	p := NewProcessors(2)
	first, firstPeer := sockets(t)
	defer func() { _, _ = first.Close(), firstPeer.Close() }()
	before := openFiles(t)
	const pairs = 20
	var all []*Socket
	for range pairs {
		near, far := tcptest.Connection(t)
		for _, conn := range []Conn{near, far} {
			s, err := New(conn, p)
			require.NoError(t, err)
			all = append(all, s)
		}
	}
	require.Equal(t, 2*pairs+1, openFiles(t)-before, "and one for their set")
	for _, s := range all {
		require.NoError(t, s.Close())
	}
	require.Equal(t, before, openFiles(t))
}

// TestTheSetIsThereWhileThereAreSockets makes and ends sets again and again, while goroutines wait for their sockets.
func TestTheSetIsThereWhileThereAreSockets(t *testing.T) {
	requireNoneDelivering(t) // those of other tests are about to end
	p := NewProcessors(2)
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			memory := tcptest.Mapped(t, 16)
			for range 50 {
				near, far := tcptest.Connection(t)
				a, errA := New(near, p)
				b, errB := New(far, p)
				if errA != nil || errB != nil {
					t.Error(errA, errB)
					return
				}
				came := make(chan error)
				go func() {
					_, err := a.Receive([]Vector{VectorOf(memory[:8])})
					came <- err
				}()
				_, err := b.Send([]Vector{VectorOf(memory[8:])})
				if wait := <-came; err != nil || wait != nil {
					t.Error(err, wait)
				}
				_, _ = a.Close(), b.Close()
			}
		})
	}
	users.Wait()
	requireNoneDelivering(t)
	require.Nil(t, p.sockets.set)
}

// TestAnEndThatNobodyWaitsForDoesNotKeepTheSetReady protects from a goroutine of the set that never rests: the kernel reports the
// end of a connection whether anybody asks for it or not.
func TestAnEndThatNobodyWaitsForDoesNotKeepTheSetReady(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *Socket) {
		a.Reset()
		require.Eventually(t, func() bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(b.in.readiness.member.set.fd), Events: unix.POLLIN}}, 0)
			return n == 0 && err == nil
		}, tcptest.Patience, time.Millisecond)
	})
}

func TestADeadlineThatWasPutOffEndsNoWait(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *Socket) {
		far, near := textOf(t, a), textOf(t, b)
		require.NoError(t, b.SetReadDeadline(time.Now().Add(time.Hour)))
		came := near.receive()
		b.in.readiness.waitUntilAwaited(t)
		b.in.readiness.expire() // as a timer that was too late to be stopped
		require.NoError(t, b.SetReadDeadline(time.Time{}))
		b.in.readiness.expire()
		far.send("in time")
		require.Equal(t, "in time", <-came)
		require.NoError(t, b.SetReadDeadline(Past))
		require.Equal(t, os.ErrDeadlineExceeded.Error(), <-near.receive())
	})
}

// TestCloseWaitsForWhoHoldsTheSocket protects a system call from working on a descriptor that is another file's by then.
func TestCloseWaitsForWhoHoldsTheSocket(t *testing.T) {
	_, b := sockets(t)
	over := make(chan error, 1)
	require.NoError(t, b.Hold(func() {
		go func() { over <- b.Close() }()
		require.Eventually(t, func() bool { return b.in.readiness.ended() != nil }, tcptest.Patience, time.Microsecond)
		require.Empty(t, over)
		require.Error(t, b.Hold(func() { t.Error("closed") }))
		_, err := unix.FcntlInt(uintptr(b.socket), unix.F_GETFD, 0)
		require.NoError(t, err)
	}))
	require.NoError(t, <-over)
}

func TestASetThatGoDoesNotPollIsAnErrorAndNotAWaitForEver(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "") // the poller takes no regular file
	require.NoError(t, err)
	defer file.Close()
	fd, err := unix.Dup(int(file.Fd()))
	require.NoError(t, err)
	_, err = setOf(fd)
	require.ErrorContains(t, err, "max_user_watches")
	require.ErrorIs(t, unix.Close(fd), unix.EBADF, "it was closed")
}
