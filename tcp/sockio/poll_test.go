package sockio

import (
	"testing"
	"time"

	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// onProcessors are both ends of a connection, on so many processors.
func onProcessors(t *testing.T, count int) (a, b *Socket) {
	t.Helper()
	connA, connB := tcptest.Connection(t)
	b, err := New(connB, NewProcessors(count))
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close() })
	return socketOf(t, connA), b
}

func TestAThreadSleepsUntilThereIsSomethingToReceive(t *testing.T) {
	a, b := onProcessors(t, 2)
	message := tcptest.Mapped(t, 4096)
	_, err := a.Send([]Vector{VectorOf(message)})
	require.NoError(t, err)
	require.True(t, b.SleepUntilReadable(time.Hour))
	n, again, err := b.TryReceive([]Vector{VectorOf(message)})
	require.NoError(t, err)
	require.False(t, again)
	require.Positive(t, n)
}

func TestAThreadSleepsUntilThePeerEndsTheConnection(t *testing.T) {
	a, b := onProcessors(t, 2)
	require.NoError(t, a.Close())
	require.True(t, b.SleepUntilReadable(time.Hour))
}

func TestAThreadThatSleepsOnASocketWakesUpInTime(t *testing.T) {
	_, b := onProcessors(t, 2)
	require.True(t, b.SleepUntilReadable(time.Nanosecond))
}

func TestAsManyThreadsSleepOnSocketsAsThereAreProcessorsForOthers(t *testing.T) {
	_, b := onProcessors(t, 2)
	b.in.processors.polling.Add(1)
	require.False(t, b.SleepUntilReadable(time.Hour))
	b.in.processors.polling.Add(-1)
	require.True(t, b.SleepUntilReadable(0))
	_, b = onProcessors(t, 1)
	require.False(t, b.SleepUntilReadable(time.Hour))
}

func TestNobodySleepsOnAClosedSocket(t *testing.T) {
	_, b := onProcessors(t, 2)
	require.NoError(t, b.Close())
	require.False(t, b.SleepUntilReadable(time.Hour))
}
