package metadata

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"kvferry/core/metadata/kv"
	"kvferry/core/metadata/kv/kvtest"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// versionsOf are the versions of an engine's address and descriptor in a store.
func versionsOf(t *testing.T, server *mooncakeServer, name string) (address, descriptor uint64) {
	t.Helper()
	meta, err := parseMeta([]byte(server.value("mooncake/rpc_meta/" + name)))
	require.NoError(t, err)
	d, err := ParseDescriptor([]byte(server.value("mooncake/ram/" + name)))
	require.NoError(t, err)
	return uint64(meta.Version), d.Version
}

func TestEachValueThatIsPublishedHasAHigherVersion(t *testing.T) {
	before := uint64(time.Now().UnixMicro())
	server, url := serveMetadata(t)
	m := join(t, url, "a", Options{})
	require.NoError(t, m.publish())
	address, latest := versionsOf(t, server, "a")
	require.GreaterOrEqual(t, address, before)
	require.Greater(t, latest, address)
	for range 3 {
		require.NoError(t, m.publish())
		_, next := versionsOf(t, server, "a")
		require.Greater(t, next, latest)
		latest = next
	}
	server.clear()
	require.NoError(t, m.restore(context.Background()))
	again, restored := versionsOf(t, server, "a")
	assert.Equal(t, address, again, "it is the same value")
	assert.Greater(t, restored, latest)
}

func TestASuccessorsVersionsAreHigherThanItsPredecessorsWhateverTheClockSays(t *testing.T) {
	future := uint64(time.Now().Add(24 * time.Hour).UnixMicro())
	for what, left := range map[string][2]uint64{"address": {future, 1}, "descriptor": {1, future}, "both": {future + 1, future}} {
		t.Run(what, func(t *testing.T) {
			server, url := serveMetadata(t)
			meta, err := metaOf(kvtest.ClosedPort(t))
			require.NoError(t, err)
			meta.Version = version(left[0])
			server.set("mooncake/rpc_meta/a", string(mustEncode(meta)))
			d := sample(1)
			d.Version = left[1]
			encoded, _ := d.Encode(kv.MaxValue)
			server.set("mooncake/ram/a", string(encoded))

			require.NoError(t, join(t, url, "a", Options{}).publish())
			address, descriptor := versionsOf(t, server, "a")
			assert.Greater(t, address, max(left[0], left[1]))
			assert.Greater(t, descriptor, address)
		})
	}
	assert.EqualValues(t, uint64(math.MaxUint64), nextVersion(math.MaxUint64), "there is no higher one")
}

func TestPeersWithoutAStoreHaveNoVersion(t *testing.T) {
	encoded, _ := sample(1).Encode(DefaultMaxLength)
	assert.NotContains(t, string(encoded), "metadata_version")
}

func TestAVersionThatIsNoNumberCountsAsAbsent(t *testing.T) {
	for _, garbage := range []string{"null", "-1", "1.5", `"7"`, "[]", "{}", "true", "18446744073709551616"} {
		d, err := ParseDescriptor([]byte(`{"protocol":"tcp","tcp_data_port":1,"metadata_version":` + garbage + `}`))
		require.NoError(t, err, garbage)
		assert.Zero(t, d.Version)
		m, err := parseMeta([]byte(`{"ip_or_host_name":"a","rpc_port":1,"metadata_version":` + garbage + `}`))
		require.NoError(t, err, garbage)
		assert.Zero(t, m.Version)
	}
	d, err := ParseDescriptor([]byte(`{"protocol":"tcp","tcp_data_port":1,"metadata_version":18446744073709551615}`))
	require.NoError(t, err)
	assert.EqualValues(t, uint64(math.MaxUint64), d.Version)
}

func TestADescriptorTakesThePlaceOfAnOlderOneOnly(t *testing.T) {
	of := func(version uint64, buffers int) *Descriptor {
		d := sample(buffers)
		d.Version = version
		d.BuildIndex()
		return d
	}
	for _, c := range []struct {
		before, after *Descriptor
		err           string
	}{
		{nil, of(1, 1), ""},
		{of(5, 1), of(6, 2), ""},
		{of(5, 1), of(5, 1), ""},
		{of(5, 1), of(0, 2), ""},
		{of(0, 1), of(1, 2), ""},
		{of(5, 1), of(4, 1), "is stale: its metadata_version 4 is older than 5"},
		{of(5, 1), of(5, 2), "conflicts with another one of the same metadata_version 5"},
	} {
		err := c.after.CheckVersion(c.before)
		if c.err == "" {
			assert.NoError(t, err)
			continue
		}
		assert.ErrorContains(t, err, c.err)
		assert.Equal(t, status.Metadata, status.Of(err, status.OK))
	}
}

func TestAnAddressThatIsStaleOrConflictsDoesNotReplaceOneThatAnswers(t *testing.T) {
	ctx := context.Background()
	server, url := serveMetadata(t)
	m, peer := join(t, url, "a", Options{}), join(t, url, "b", Options{})
	require.NoError(t, m.publish())
	find := func() string {
		at, err := peer.HandshakeAddress(ctx, "a")
		require.NoError(t, err)
		return at
	}
	require.Equal(t, m.at, find())
	address, _ := versionsOf(t, server, "a")
	write := func(version uint64) {
		server.set("mooncake/rpc_meta/a", fmt.Sprintf(`{"ip_or_host_name":"10.0.0.9","rpc_port":7,"metadata_version":%d}`, version))
	}
	for _, refused := range []uint64{1, address - 1, address} {
		write(refused)
		require.Equal(t, m.at, find(), "version %d after %d", refused, address)
	}
	for _, taken := range []uint64{0, address + 1} {
		write(taken)
		require.Equal(t, "10.0.0.9:7", find())
		server.set("mooncake/rpc_meta/a", string(mustEncode(rpcMeta{Host: "127.0.0.1", Port: 9, Version: version(address + 2)})))
		find()
	}
}

func TestAnAddressOfASuccessorWhoseClockIsBehindIsTakenOnceNobodyAnswersAtTheFormerOne(t *testing.T) {
	ctx := context.Background()
	server, url := serveMetadata(t)
	peer := join(t, url, "b", Options{})
	dead, err := metaOf(kvtest.ClosedPort(t))
	require.NoError(t, err)
	dead.Version = 1000
	server.set("mooncake/rpc_meta/a", string(mustEncode(dead)))
	at, err := peer.HandshakeAddress(ctx, "a")
	require.NoError(t, err)
	require.Equal(t, dead.hostPort(), at)
	server.set("mooncake/rpc_meta/a", `{"ip_or_host_name":"10.0.0.9","rpc_port":7,"metadata_version":999}`)
	at, err = peer.HandshakeAddress(ctx, "a")
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.9:7", at)
}

func TestAnAddressOfASuccessorWhoseClockIsBehindIsTakenWhereAnotherEngineHasTheFormerOne(t *testing.T) {
	ctx := context.Background()
	server, url := serveMetadata(t)
	peer, other := join(t, url, "b", Options{}), join(t, url, "c", Options{})
	former, err := metaOf(other.at)
	require.NoError(t, err)
	former.Version = 1000
	server.set("mooncake/rpc_meta/a", string(mustEncode(former)))
	at, err := peer.HandshakeAddress(ctx, "ram/a")
	require.NoError(t, err)
	require.Equal(t, other.at, at)
	server.set("mooncake/rpc_meta/a", `{"ip_or_host_name":"10.0.0.9","rpc_port":7,"metadata_version":999}`)
	at, err = peer.HandshakeAddress(ctx, "ram/a")
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.9:7", at)
}

func TestAfterAnEntryWasGoneItsFormerVersionMeansNothing(t *testing.T) {
	ctx := context.Background()
	server, url := serveMetadata(t)
	m, peer := join(t, url, "a", Options{}), join(t, url, "b", Options{})
	require.NoError(t, m.publish())
	_, err := peer.HandshakeAddress(ctx, "a")
	require.NoError(t, err)
	require.NoError(t, m.Withdraw(ctx))
	_, err = peer.HandshakeAddress(ctx, "a")
	require.Error(t, err)
	server.set("mooncake/rpc_meta/a", `{"ip_or_host_name":"10.0.0.9","rpc_port":7,"metadata_version":1}`)
	at, err := peer.HandshakeAddress(ctx, "a")
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.9:7", at)
}
