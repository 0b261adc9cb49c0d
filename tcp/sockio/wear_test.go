package sockio

import (
	"testing"

	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

func TestAConnectionIsWornAfterItsRecordsInEitherDirection(t *testing.T) {
	for _, outward := range []bool{true, false} {
		connA, connB := tcptest.Connection(t)
		innerA, innerB := NewInner(connA), NewInner(connB)
		const limit = 40 // the handshake takes a few
		innerA.LimitRecords(limit)
		client, server := shake(t, innerA, innerB)
		a, b := secured(t, innerA, client), secured(t, innerB, server)
		require.False(t, a.Worn())
		from, to := a, b
		if !outward {
			from, to = b, a
		}
		payload, came := randomBytes(t, 100), make([]byte, 100)
		pass := func() {
			require.NoError(t, sendAllOf(from, []Vector{VectorOf(payload)}))
			for v := []Vector{VectorOf(came)}; len(v) > 0; {
				n, err := to.Receive(v)
				require.NoError(t, err)
				v = Advance(v, n)
			}
			require.Equal(t, payload, came)
		}
		for range limit / 2 {
			pass()
		}
		require.False(t, a.Worn())
		for range limit {
			pass()
		}
		require.True(t, a.Worn())
		require.False(t, b.Worn(), "it has the limit of all connections")
		pass()
	}
	plain, _ := sockets(t)
	require.False(t, plain.Worn())
}
