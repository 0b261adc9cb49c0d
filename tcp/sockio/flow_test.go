package sockio

import (
	"testing"
	"time"

	"kvferry/core/metrics"

	"github.com/stretchr/testify/require"
)

func TestAClosedSocketAndOneOfThisHostHaveNoFlow(t *testing.T) {
	var none *Socket
	require.Zero(t, none.Flow())
	here, _ := sockets(t)
	require.Equal(t, 1, here.Flow().Connections)
	require.NoError(t, here.Close())
	require.Zero(t, here.Flow())
}

func TestTheKernelIsNotAskedWhileACallMayWaitForAPage(t *testing.T) {
	here, there := sockets(t)
	before := here.Flow()
	_, err := there.Send([]Vector{VectorOf(make([]byte, 100))})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return here.Flow().Received == 100 }, 10*time.Second, time.Millisecond)
	known := here.Flow()
	require.NotEqual(t, before, known)
	here.in.enterAnnounced()
	_, err = there.Send([]Vector{VectorOf(make([]byte, 100))})
	require.NoError(t, err)
	require.Eventually(t, func() bool { n, err := there.Unacknowledged(); return err == nil && n == 0 }, 10*time.Second, time.Millisecond)
	require.Equal(t, known, here.Flow())
	here.in.inAnnounced.Store(false)
	require.EqualValues(t, 200, here.Flow().Received)
}

func TestAnUnknownRoundTripIsZero(t *testing.T) {
	require.Zero(t, seconds(^uint32(0)))
	require.InDelta(t, 0.000125, seconds(125), 1e-12)
	require.Equal(t, metrics.Flow{}, (*Socket)(nil).Flow())
}
