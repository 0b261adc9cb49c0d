package metrics

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFlowsAddUpAndTheirRoundTripIsTheMean(t *testing.T) {
	var sum Flow
	sum.Plus(&Flow{})
	require.Equal(t, Flow{}, sum)
	sum.Plus(&Flow{Connections: 1, RoundTrip: 4, MinRoundTrip: 3, Window: 10, PeerWindow: 3, Segment: 1448, Sent: 7, Retransmitted: 2, Busy: 1})
	sum.Plus(&Flow{Connections: 3, RoundTrip: 8, MinRoundTrip: 2, Window: 20, PeerWindow: 4, Segment: 500, Sent: 1, OutOfOrder: 5, Busy: 2, PeerLimited: 1})
	sum.Plus(&Flow{}) // a connection of which the kernel says nothing
	require.Equal(t, Flow{
		Connections: 4, RoundTrip: 7, MinRoundTrip: 2, Window: 30, PeerWindow: 7, Segment: 1448, Sent: 8, Retransmitted: 2, OutOfOrder: 5, Busy: 3, PeerLimited: 1,
	}, sum)
}
