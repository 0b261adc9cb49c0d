package metadata

import (
	"fmt"
	"sync"
	"testing"

	_ "kvferry/core/metadata/etcd"
	"kvferry/core/metadata/kv/kvtest"
	_ "kvferry/core/metadata/redis"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What central does with any kv.Store is in central_test.go. Here are the stores themselves.

// everyKind runs a test for each kind of store that has a server of its own.
func everyKind(t *testing.T, test func(t *testing.T, kind kvtest.Kind)) {
	for _, kind := range []kvtest.Kind{kvtest.Etcd, kvtest.Redis} {
		t.Run(kind.Scheme, func(t *testing.T) { test(t, kind) })
	}
}

func TestEnginesFindEachOtherInAStoreOfEveryKind(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvtest.Kind) {
		url := kind.Scheme + "://" + kind.Start(t, kvtest.Serving{}).Address
		for _, o := range []Options{{}, {ClusterID: "blue"}} {
			peer := join(t, url, "peer", o)
			for _, name := range []string{"node1", "node1:12345", "[fe80::1%eth0]:5", "::1"} {
				m := join(t, url, name, o)
				m.buffers.Store(2)
				require.NoError(t, m.publish())
				d, err := peer.Fetch(t.Context(), name)
				require.NoError(t, err)
				require.Equal(t, name, d.Name)
				require.Len(t, d.Buffers, 2)
				at, err := peer.HandshakeAddress(t.Context(), name)
				require.NoError(t, err)
				require.Equal(t, m.at, at)
			}
		}
	})
}

func TestAPredecessorInAStoreOfEveryKindIsReplacedOnlyIfItIsDead(t *testing.T) {
	everyKind(t, func(t *testing.T, kind kvtest.Kind) {
		server := kind.Start(t, kvtest.Serving{}).Address
		url := kind.Scheme + "://" + server
		kind.Raw(t, server, "mooncake/rpc_meta/a", []byte(entryOf(t, kvtest.ClosedPort(t))+"\n"))
		first := join(t, url, "a", Options{})
		require.NoError(t, first.publish())

		second := join(t, url, "a", Options{})
		require.ErrorContains(t, second.publish(), first.at)
		require.NoError(t, second.Withdraw(t.Context()))
		at, err := join(t, url, "peer", Options{}).HandshakeAddress(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, first.at, at, "the second one has lost the first one nothing")

		require.NoError(t, first.Withdraw(t.Context()))
		_, err = second.Fetch(t.Context(), "a")
		require.ErrorContains(t, err, `there is no segment "a"`)
	})
}

func TestAThousandEnginesShareAStoreOfEveryKind(t *testing.T) {
	const engines, atOnce = 1000, 50
	everyKind(t, func(t *testing.T, kind kvtest.Kind) {
		url := kind.Scheme + "://" + kind.Start(t, kvtest.Serving{}).Address
		members := make([]*member, engines)
		for i := range members {
			members[i] = join(t, url, fmt.Sprint("node", i), Options{})
		}
		all := func(do func(i int) error) {
			var workers sync.WaitGroup
			for first := range atOnce {
				workers.Go(func() {
					for i := first; i < engines; i += atOnce {
						assert.NoError(t, do(i))
					}
				})
			}
			workers.Wait()
		}
		all(func(i int) error { return members[i].publish() })
		all(func(i int) error {
			d, err := members[i].Fetch(t.Context(), members[(i+1)%engines].name)
			if err == nil {
				assert.Equal(t, members[(i+1)%engines].name, d.Name)
			}
			return err
		})
		all(func(i int) error { return members[i].Withdraw(t.Context()) })
	})
}
