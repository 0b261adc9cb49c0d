package tcp

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// eachKind runs a test with both ends of a connection of each kind.
func eachKind(t *testing.T, run func(t *testing.T, a, b *stream)) {
	t.Run("TCP", func(t *testing.T) {
		a, b := streams(t)
		run(t, a, b)
	})
	t.Run("this host", func(t *testing.T) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		var ends [2]*stream
		for i, fd := range pair {
			ends[i] = streamOf(t, connOf(t, fd))
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

// rings reports whether Go's poller has something to find. To ask takes what is old out of the epoll set.
func (b *bell) rings(t *testing.T) (rings bool) {
	t.Helper()
	require.NoError(t, b.hold(func(set uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(set), Events: unix.POLLIN}}, 0)
		require.NoError(t, err)
		rings = n > 0
	}))
	return rings
}

// isAwaited reports whether somebody waits for the bell.
func (b *bell) isAwaited() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting
}

func (b *bell) waitUntilAwaited(t *testing.T) {
	t.Helper()
	require.Eventually(t, b.isAwaited, patience, time.Microsecond)
}

// text sends and receives short texts.
type text struct {
	t    *testing.T
	s    *stream
	room []byte
}

func textOf(t *testing.T, s *stream) *text { return &text{t, s, mapped(t, 16)} }

func (x *text) send(what string) {
	x.t.Helper()
	_, err := x.s.send([]ioVector{vectorOf(x.room[:copy(x.room, what)])})
	require.NoError(x.t, err)
}

// receive returns where what is received goes to.
func (x *text) receive() <-chan string {
	came := make(chan string)
	go func() {
		n, err := x.s.receive([]ioVector{vectorOf(x.room)})
		if err != nil {
			came <- err.Error()
			return
		}
		came <- string(x.room[:n])
	}()
	return came
}

func TestABellRingsOnlyForWhoWaits(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *stream) {
		far, near := textOf(t, a), textOf(t, b)
		far.send("early")
		require.False(t, b.in.bell.rings(t), "for nobody")
		require.Equal(t, "early", <-near.receive())

		came := near.receive()
		b.in.bell.waitUntilAwaited(t)
		far.send("awaited")
		require.Equal(t, "awaited", <-came)
		far.send("there")
		require.Equal(t, "there", <-near.receive(), "without waiting")
		far.send("more")
		require.False(t, b.in.bell.rings(t), "for who is awake")
		require.False(t, a.out.bell.rings(t), "for nobody, though there is room")
	})
}

// TestWhatComesWhileSomebodyLooksIsFoundByWhoWaits protects from a bell that is set when what it is to ring for is there
// already, and does not ring, since it has rung for the same socket before.
func TestWhatComesWhileSomebodyLooksIsFoundByWhoWaits(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *stream) {
		far, near := textOf(t, a), textOf(t, b)
		for range 3 {
			came := near.receive()
			b.in.bell.waitUntilAwaited(t)
			far.send("before")
			require.Equal(t, "before", <-came)

			b.look()
			b.look()
			came = near.receive()
			b.in.bell.waitUntilAwaited(t)
			far.send("meanwhile")
			b.looked()
			b.looked()
			require.Equal(t, "meanwhile", <-came)
		}
	})
}

// TestWhoWaitsWhenSomebodyBeginsToLookIsWokenAfterwards is about who has set the bell already.
func TestWhoWaitsWhenSomebodyBeginsToLookIsWokenAfterwards(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *stream) {
		far, near := textOf(t, a), textOf(t, b)
		came := near.receive()
		b.in.bell.waitUntilAwaited(t)
		b.look()
		far.send("meanwhile")
		require.False(t, b.in.bell.rings(t))
		b.looked()
		require.Equal(t, "meanwhile", <-came)
	})
}

func TestWhoWaitsForRoomIsWokenWhenThereIsSome(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *stream) {
		block, room := mapped(t, 1<<20), mapped(t, 1<<20)
		drain := func(left int) int { // less than 0 is what else has come
			for left > 0 {
				n, err := b.receive([]ioVector{vectorOf(room)})
				require.NoError(t, err)
				left -= n
			}
			return left
		}
		for range 3 {
			sent := 0
			for again := false; !again; {
				n, full, err := a.trySend([]ioVector{vectorOf(block)})
				require.NoError(t, err)
				sent, again = sent+n, full
			}
			more := make(chan int)
			go func() {
				n, err := a.send([]ioVector{vectorOf(block)})
				if err != nil {
					n = -1
				}
				more <- n
			}()
			a.out.bell.waitUntilAwaited(t)
			left := drain(sent)
			n := <-more
			require.Positive(t, n)
			drain(n + left)
		}
	})
}

func TestTheRoundTripOfThisHostIsShort(t *testing.T) {
	eachKind(t, func(t *testing.T, a, b *stream) {
		require.Less(t, b.roundTrip(), time.Second)
		require.NoError(t, a.close())
		require.Zero(t, a.roundTrip(), "of what is closed")
	})
}
