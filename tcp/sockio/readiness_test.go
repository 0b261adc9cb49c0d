package sockio

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// eachKind runs a test with both ends of a connection of each kind.
func eachKind(t *testing.T, run func(t *testing.T, a, b *Socket)) {
	t.Run("TCP", func(t *testing.T) {
		a, b := sockets(t)
		run(t, a, b)
	})
	t.Run("this host", func(t *testing.T) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		var ends [2]*Socket
		for i, fd := range pair {
			ends[i] = socketOf(t, connOf(t, fd))
		}
		run(t, ends[0], ends[1])
	})
}

func connOf(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	file := os.NewFile(uintptr(fd), "a socket")
	defer func() { _ = file.Close() }()
	conn, err := net.FileConn(file)
	require.NoError(t, err)
	return conn.(*net.UnixConn)
}

// isArmed reports whether the kernel is to tell the epoll set of the readiness's events.
func (r *readiness) isArmed(t *testing.T) bool {
	t.Helper()
	var armed uint32
	require.NoError(t, r.hold(func() {
		set, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", r.member.set.fd))
		require.NoError(t, err)
		_, rest, found := strings.Cut(string(set), fmt.Sprintf("tfd: %8d events: ", r.member.socket))
		require.True(t, found, string(set))
		_, err = fmt.Sscanf(rest, "%x", &armed)
		require.NoError(t, err)
	}))
	return armed&r.events == r.events
}

func (r *readiness) waitUntilAwaited(t *testing.T) {
	t.Helper()
	require.Eventually(t, r.isAwaited, tcptest.Patience, time.Microsecond)
}

// text sends and receives short texts.
type text struct {
	t    *testing.T
	s    *Socket
	room []byte
}

func textOf(t *testing.T, s *Socket) *text { return &text{t, s, tcptest.Mapped(t, 16)} }

func (x *text) send(what string) {
	x.t.Helper()
	_, err := x.s.Send([]Vector{VectorOf(x.room[:copy(x.room, what)])})
	require.NoError(x.t, err)
}

// receive returns where what is received goes to.
func (x *text) receive() <-chan string {
	came := make(chan string)
	go func() {
		n, err := x.s.Receive([]Vector{VectorOf(x.room)})
		if err != nil {
			came <- err.Error()
			return
		}
		came <- string(x.room[:n])
	}()
	return came
}

func TestTheSetListensOnlyForAGoroutineThatWaits(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *Socket) {
		far, near := textOf(t, a), textOf(t, b)
		far.send("early")
		require.False(t, b.in.readiness.isArmed(t), "for nobody")
		require.Equal(t, "early", <-near.receive())

		came := near.receive()
		b.in.readiness.waitUntilAwaited(t)
		require.True(t, b.in.readiness.isArmed(t))
		far.send("awaited")
		require.Equal(t, "awaited", <-came)
		far.send("there")
		require.Equal(t, "there", <-near.receive(), "without waiting")
		far.send("more")
		require.False(t, b.in.readiness.isArmed(t), "for who is awake")
		require.False(t, a.out.readiness.isArmed(t), "for nobody, though there is room")
	})
}

// TestBytesThatArriveDuringASpinWakeTheGoroutineThatWaits protects from a set that is armed when the socket is ready already,
// and does not become ready, because it was ready for the same socket before.
func TestBytesThatArriveDuringASpinWakeTheGoroutineThatWaits(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *Socket) {
		far, near := textOf(t, a), textOf(t, b)
		for range 3 {
			came := near.receive()
			b.in.readiness.waitUntilAwaited(t)
			far.send("before")
			require.Equal(t, "before", <-came)

			b.BeginSpin()
			b.BeginSpin()
			came = near.receive()
			b.in.readiness.waitUntilAwaited(t)
			far.send("meanwhile")
			b.EndSpin()
			b.EndSpin()
			require.Equal(t, "meanwhile", <-came)
		}
	})
}

// TestAGoroutineThatWaitsWhenASpinBeginsIsWokenAfterIt is about a set that is armed already.
func TestAGoroutineThatWaitsWhenASpinBeginsIsWokenAfterIt(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *Socket) {
		far, near := textOf(t, a), textOf(t, b)
		came := near.receive()
		b.in.readiness.waitUntilAwaited(t)
		b.BeginSpin()
		far.send("meanwhile")
		require.False(t, b.in.readiness.isArmed(t))
		b.EndSpin()
		require.Equal(t, "meanwhile", <-came)
	})
}

func TestAGoroutineThatWaitsForRoomIsWokenWhenThereIsSome(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *Socket) {
		block, room := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
		drain := func(left int) int { // less than 0 is what else has come
			for left > 0 {
				n, err := b.Receive([]Vector{VectorOf(room)})
				require.NoError(t, err)
				left -= n
			}
			return left
		}
		for range 3 {
			sent := 0
			for again := false; !again; {
				n, full, err := a.TrySend([]Vector{VectorOf(block)})
				require.NoError(t, err)
				sent, again = sent+n, full
			}
			more, waited := make(chan int), atomic.Bool{}
			go func() {
				all := 0
				for !waited.Load() { // the kernel may make room a little later than it says that there is none
					n, err := a.Send([]Vector{VectorOf(block)})
					if err != nil {
						more <- -1
						return
					}
					all += n
				}
				more <- all
			}()
			a.out.readiness.waitUntilAwaited(t)
			waited.Store(true)
			left := drain(sent)
			n := <-more
			require.Positive(t, n)
			drain(n + left)
		}
	})
}

func TestTheRoundTripOfThisHostIsShort(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *Socket) {
		require.Less(t, b.RoundTrip(), time.Second)
		require.NoError(t, a.Close())
		require.Zero(t, a.RoundTrip(), "of what is closed")
	})
}
