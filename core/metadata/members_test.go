package metadata

import (
	"fmt"
	"testing"
	"time"

	"kvferry/core/metadata/kv/kvtest"
	"kvferry/metaserver"

	"github.com/stretchr/testify/require"
)

// everyStore runs a test for each kind of store that can list its engines.
func everyStore(t *testing.T, test func(t *testing.T, url string)) {
	everyKind(t, func(t *testing.T, kind kvtest.Kind) {
		test(t, kind.Scheme+"://"+kind.Start(t, kvtest.Serving{}).Address)
	})
	t.Run("http", func(t *testing.T) {
		server, err := metaserver.Start(metaserver.Options{Host: "127.0.0.1"})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, server.Close()) })
		test(t, server.Address())
	})
}

// directory opens the directory of a store, which is closed with the test.
func directory(t *testing.T, url string, o Options) Directory {
	d, err := OpenDirectory(url, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

func TestADirectoryTellsTheLivingFromTheDead(t *testing.T) {
	everyStore(t, func(t *testing.T, url string) {
		began := time.Now().Add(-time.Second).UTC()
		lives, killed := join(t, url, "lives", Options{}), join(t, url, "killed", Options{})
		lives.buffers.Store(3)
		require.NoError(t, lives.publish())
		killed.at = kvtest.ClosedPort(t)
		require.NoError(t, killed.publish())
		moved := join(t, url, "moved", Options{})
		moved.at = lives.at
		require.NoError(t, moved.publish())
		require.NoError(t, killed.kv.Put(t.Context(), "mooncake/ram/unaddressed", []byte("{}")))
		other := join(t, url, "elsewhere", Options{ClusterID: "blue"})
		require.NoError(t, other.publish())

		members, err := directory(t, url, Options{}).Members(t.Context(), nil)
		require.NoError(t, err)
		states := map[string]State{}
		for _, m := range members {
			states[m.Name] = m.State
			require.Equal(t, m.State == Reachable, m.Problem == "", m)
		}
		require.Equal(t, map[string]State{"lives": Reachable, "killed": Stale, "moved": Stale, "unaddressed": Missing}, states)
		require.Contains(t, members[2].Problem, "another engine answers")
		require.Equal(t, lives.at, members[1].Address)
		require.Equal(t, 3, members[1].Buffers)
		require.NotZero(t, members[1].Bytes)
		require.Equal(t, "mooncake", members[1].Kind, "as its descriptor says")
		for _, dated := range []string{members[1].Since, members[1].Changed} {
			at, err := time.Parse(time.RFC3339, dated)
			require.NoError(t, err)
			require.WithinRange(t, at, began.Truncate(time.Second), time.Now())
		}

		members, err = directory(t, url, Options{ClusterID: "blue"}).Members(t.Context(), nil)
		require.NoError(t, err)
		require.Len(t, members, 1)
		require.Equal(t, "elsewhere", members[0].Name)
		members, err = directory(t, url, Options{}).Members(t.Context(), []string{"killed", "unknown", "killed"})
		require.NoError(t, err)
		require.Len(t, members, 2)
		require.Equal(t, Missing, members[1].State)
	})
}

func TestOnlyTheDeadAreForgotten(t *testing.T) {
	everyStore(t, func(t *testing.T, url string) {
		d := directory(t, url, Options{})
		lives, killed := join(t, url, "lives", Options{}), join(t, url, "killed", Options{})
		require.NoError(t, lives.publish())
		killed.at = kvtest.ClosedPort(t)
		require.NoError(t, killed.publish())

		require.ErrorContains(t, d.Forget(t.Context(), "lives", false), lives.at)
		_, err := lives.Fetch(t.Context(), "lives")
		require.NoError(t, err, "nothing of it was removed")
		require.NoError(t, d.Forget(t.Context(), "killed", false))
		require.ErrorContains(t, d.Forget(t.Context(), "killed", false), `there is no engine "killed"`)
		require.NoError(t, d.Forget(t.Context(), "lives", true))
		members, err := d.Members(t.Context(), nil)
		require.NoError(t, err)
		require.Empty(t, members)
	})
}

func TestEntriesThatAreNoneAreShownAndCanBeForgotten(t *testing.T) {
	everyStore(t, func(t *testing.T, url string) {
		d := directory(t, url, Options{})
		store := join(t, url, "any", Options{}).kv
		require.NoError(t, store.Put(t.Context(), "mooncake/rpc_meta/broken", []byte("no address")))
		members, err := d.Members(t.Context(), nil)
		require.NoError(t, err)
		require.Len(t, members, 1)
		require.Equal(t, Unclear, members[0].State)
		require.Contains(t, members[0].Problem, "mooncake/rpc_meta/broken")
		require.NoError(t, d.Forget(t.Context(), "broken", false))
	})
}

func TestAServerOfMooncakesThatCannotListSaysSo(t *testing.T) {
	_, url := serveMetadata(t)
	m := join(t, url, "node", Options{})
	require.NoError(t, m.publish())
	d := directory(t, url, Options{})
	_, err := d.Members(t.Context(), nil)
	require.ErrorContains(t, err, "cannot list")
	members, err := d.Members(t.Context(), []string{"node"})
	require.NoError(t, err)
	require.Equal(t, Reachable, members[0].State)
}

func TestWithoutAStoreTheEnginesThemselvesAreAsked(t *testing.T) {
	d := directory(t, P2P, Options{})
	_, at := start(t, Handlers{Name: "a", Descriptor: func() *Descriptor { return sample(2) }, Notify: refuse}, HandshakeOptions{})
	dead := kvtest.ClosedPort(t)
	members, err := d.Members(t.Context(), []string{at, dead, "no address:x"})
	require.NoError(t, err)
	states := map[string]State{}
	for _, m := range members {
		states[m.Name] = m.State
	}
	require.Equal(t, map[string]State{at: Reachable, dead: Stale, "no address:x": Missing}, states)
	_, err = d.Members(t.Context(), nil)
	require.ErrorContains(t, err, "name them")
	require.ErrorContains(t, d.Forget(t.Context(), at, true), "no store")
}

func TestManyEnginesAreListed(t *testing.T) {
	everyStore(t, func(t *testing.T, url string) {
		store := join(t, url, "any", Options{}).kv
		for i := range 300 {
			require.NoError(t, store.Put(t.Context(), fmt.Sprintf("mooncake/ram/%03d", i), []byte("{}")))
		}
		members, err := directory(t, url, Options{}).Members(t.Context(), nil)
		require.NoError(t, err)
		require.Len(t, members, 300)
		require.Equal(t, "299", members[299].Name)
	})
}
