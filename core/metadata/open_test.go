package metadata

import (
	"context"
	"strings"
	"testing"

	"kvferry/core/metadata/kv"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTheSchemeOfAConnectionStringSaysWhatStoreItIs(t *testing.T) {
	for connection, name := range map[string]string{
		"etcd://10.0.0.1:2379;10.0.0.2": "etcd://10.0.0.1:2379;10.0.0.2:2379",
		"10.0.0.1:2379":                 "etcd://10.0.0.1:2379",
		"10.0.0.1:1;10.0.0.2:2":         "etcd://10.0.0.1:1;10.0.0.2:2",
		"redis://10.0.0.1:1":            "redis://10.0.0.1:1",
		"rediss://10.0.0.1":             "rediss://10.0.0.1:6379",
		"http://10.0.0.1/metadata":      "http://10.0.0.1/metadata",
		"https://10.0.0.1/metadata":     "https://10.0.0.1/metadata",
	} {
		store, err := kv.Open(connection, kv.Options{})
		require.NoError(t, err)
		assert.Equal(t, name, store.Name())
		require.NoError(t, store.Close())
	}
}

func TestOpenRefusesWhatIsNoConnectionString(t *testing.T) {
	for connection, says := range map[string]string{"": "P2PHANDSHAKE needs none", "etcd://": "P2PHANDSHAKE needs none", "p2phandshake": "has to be P2PHANDSHAKE", "etcd://P2PHandshake": "has to be P2PHANDSHAKE", "ftp://10.0.0.1": "\"ftp\"; known are etcd, http, https, redis, rediss", "://": `""`, "http://": "no URL with a host", "http://a:b:c/": "no URL", "http://u:secret@[::1/": "no URL", "etcd://me:secret@a": "variables of their own", "redis://:secret@a:1": "variables of their own", "rediss://a/0": "no host:port"} {
		_, err := Open(connection, Options{})
		require.Error(t, err)
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
		assert.Contains(t, err.Error(), says)
		assert.NotContains(t, err.Error(), "secret")
	}
	for connection, says := range map[string]string{
		"etcd://secret\n:2379": "control characters", "http://secret@a\x7f/": "control characters", "redis://secret\xff": "UTF-8",
		"http://a/" + strings.Repeat("secret", 1<<10): "6153 bytes, more than 4096",
	} {
		_, err := Open(connection, Options{})
		require.ErrorContains(t, err, says)
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
		assert.NotContains(t, err.Error(), "secret")
	}
}

func TestAConnectionStringIsShownWithoutSecrets(t *testing.T) {
	for connection, shown := range map[string]string{
		P2P:                                   P2P,
		"":                                    "etcd:",
		"10.0.0.1:2379":                       "etcd://10.0.0.1:2379",
		"me:secret@10.0.0.1:1;10.0.0.2:2":     "etcd://10.0.0.1:1;10.0.0.2:2",
		"etcd://10.0.0.1:1;10.0.0.2:2":        "etcd://10.0.0.1:1;10.0.0.2:2",
		"redis://:secret@10.0.0.1:1":          "redis://10.0.0.1:1",
		"http://me:secret@[::1]:80/metadata":  "http://[::1]:80/metadata",
		"https://10.0.0.1/metadata?k=secret":  "https://10.0.0.1/metadata",
		"http://me:secret@a:1,b:2/m?k=secret": "http://a:1,b:2/m",
	} {
		assert.Equal(t, shown, Shown(connection), connection)
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
