package metadata

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// crowded answers as a server does that is asked by too many: it closes so many connections first, and then answers. read says
// whether it reads the request before it closes one: where it does not, the client sees a reset. Connections are counted.
func crowded(t *testing.T, closes int64, read bool, answer []byte) (peer string, connections *atomic.Int64) {
	connections = new(atomic.Int64)
	peer = impostor(t, func(conn *net.TCPConn) {
		if connections.Add(1) > closes {
			saying(answer)(conn)
			return
		}
		if read {
			saying(nil)(conn)
		}
	})
	return peer, connections
}

func TestADescriptorIsAskedForAgainWhereAServerIsAskedByTooMany(t *testing.T) {
	described, _ := sample(1).Encode(DefaultMaxLength)
	answer := encodeFrame(kindMetadata, false, described)
	for _, read := range []bool{true, false} {
		peer, connections := crowded(t, 4, read, answer)
		d, err := Client{}.FetchDescriptor(t.Context(), peer)
		require.NoError(t, err)
		require.Equal(t, sample(1).Name, d.Name)
		require.EqualValues(t, 5, connections.Load())
	}
}

func TestAServerThatNeverAnswersIsNotAskedForALongTime(t *testing.T) {
	peer, connections := crowded(t, 1<<30, true, nil)
	_, err := Client{ConnectTimeout: time.Second}.FetchDescriptor(t.Context(), peer)
	require.ErrorIs(t, err, errNoFrame)
	require.Greater(t, connections.Load(), int64(3))
	require.Less(t, connections.Load(), int64(30))
}

func TestNotificationsAndProbesAreSentOnce(t *testing.T) {
	peer, connections := crowded(t, 1<<30, true, nil)
	require.Error(t, Client{}.SendNotify(t.Context(), peer, Notification{Name: "a", Text: "b"}))
	require.EqualValues(t, 1, connections.Load())
	require.NoError(t, Client{}.Probe(t.Context(), peer))
	require.EqualValues(t, 2, connections.Load())
}
