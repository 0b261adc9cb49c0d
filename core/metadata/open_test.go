package metadata

import (
	"context"
	"testing"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOpenNamesTheStoresThatItLacks(t *testing.T) {
	for connection, scheme := range map[string]string{
		"etcd://10.0.0.1:2379": "etcd",
		"10.0.0.1:2379":        "etcd",
	} {
		_, err := Open(connection, Options{})
		require.Error(t, err)
		assert.Equal(t, status.Metadata, status.Of(err, status.OK))
		assert.Contains(t, err.Error(), "of kind "+scheme+":")
	}
}

func TestOpenRefusesWhatIsNoConnectionString(t *testing.T) {
	for connection, says := range map[string]string{"": "empty", "ftp://10.0.0.1": "ftp", "://": `""`, "http://": "no URL with a host", "http://a:b:c/": "no URL", "http://u:secret@[::1/": "no URL", "redis://:secret@a:1": "variables of their own", "rediss://a/0": "no host:port"} {
		_, err := Open(connection, Options{})
		require.Error(t, err)
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
		assert.Contains(t, err.Error(), says)
		assert.NotContains(t, err.Error(), "secret")
	}
}

func TestInP2PModeASegmentIsFoundByItsName(t *testing.T) {
	_, peer := start(t, Handlers{Descriptor: one, Notify: refuse}, HandshakeOptions{})
	ctx := context.Background()
	store, err := Open(P2P, Options{DefaultPort: 12001})
	require.NoError(t, err)
	require.NoError(t, store.Publish(ctx, peer, one))
	for _, name := range []string{peer, peer + ":npu_3"} {
		d, err := store.Fetch(ctx, name)
		require.NoError(t, err)
		assert.Equal(t, 15004, d.DataPort)
	}
	require.NoError(t, store.Withdraw(ctx))
	require.NoError(t, store.Close())
}

func TestInP2PModeANameGivesTheHandshakeAddress(t *testing.T) {
	store, err := Open(P2P, Options{DefaultPort: 12001})
	require.NoError(t, err)
	for name, want := range map[string]string{
		"node1": "node1:12001", "node1:5": "node1:5", "::1": "[::1]:12001", "[::1]:5": "[::1]:5", "node1:5:npu_0": "node1:5",
	} {
		got, err := store.HandshakeAddress(context.Background(), name)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	for _, name := range []string{"", "node1:0", "node1:x", "a b"} {
		_, err := store.Fetch(context.Background(), name)
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK), name)
	}
}
