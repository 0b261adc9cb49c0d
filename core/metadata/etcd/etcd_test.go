package etcd

import (
	"testing"
	"time"

	"kvferry/core/metadata/kv"
	"kvferry/core/metadata/kv/kvtest"
	"kvferry/core/status"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEtcdIsACentralStore(t *testing.T) { kvtest.Run(t, kvtest.Etcd) }

// openAt opens a store, which is closed with the test.
func openAt(t *testing.T, servers string, e kv.EtcdOptions) *store {
	s, err := open("etcd://"+servers, kv.Options{Etcd: e})
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// leaseOf is the lease that a key hangs on, 0 for none, and -1 for no key.
func leaseOf(t *testing.T, server, key string) int64 {
	answer := kvtest.EtcdCall(t, server, "kv/range", map[string]any{"key": []byte(key)})
	if len(answer.Kvs) == 0 {
		return -1
	}
	return answer.Kvs[0].Lease
}

// grant makes a lease that nobody renews, and returns it and its time in seconds.
func grant(t *testing.T, server string, seconds int64) (lease, granted int64) {
	answer := kvtest.EtcdCall(t, server, "lease/grant", map[string]any{"TTL": seconds})
	return answer.ID, answer.TTL
}

// timeOf is how many seconds of a lease are left, -1 for no lease, and how many it was granted for.
func timeOf(t *testing.T, server string, lease int64) (left, granted int64) {
	answer := kvtest.EtcdCall(t, server, "lease/timetolive", map[string]any{"ID": lease})
	return answer.TTL, answer.GrantedTTL
}

const patience = 20 * time.Second // for what etcd does in its own time

func TestAnEtcdStoreIsNamedByItsEndPoints(t *testing.T) {
	store := openAt(t, "10.0.0.1;[::1]:1;a:2", kv.EtcdOptions{Username: "me", Password: "secret"})
	require.Equal(t, "etcd://10.0.0.1:2379;[::1]:1;a:2", store.Name())
	for _, servers := range []string{"", ";", "a;", "me:secret@a"} {
		_, err := open("etcd://"+servers, kv.Options{})
		require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
		require.NotContains(t, err.Error(), "secret")
	}
	_, err := open("etcd://a", kv.Options{Connection: kv.Connection{CA: "/no/such/file"}, Etcd: kv.EtcdOptions{TLS: true}})
	require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
}

func TestEtcdIsReachedByAnyOfItsEndPoints(t *testing.T) {
	server := kvtest.Etcd.Start(t, kvtest.Serving{})
	for _, servers := range []string{kvtest.ClosedPort(t) + ";" + server.Address, server.Address + ";" + kvtest.Listener(t, kvtest.Drain)} {
		store := openAt(t, servers, kv.EtcdOptions{})
		require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
		require.Equal(t, "1", kvtest.MustGet(t, store, "a"))
	}
}

func TestValuesInEtcdEndInANewlineAsMooncakesDo(t *testing.T) {
	server := kvtest.Etcd.Start(t, kvtest.Serving{})
	store := openAt(t, server.Address, kv.EtcdOptions{})
	for _, value := range []string{"{}", "{}\n"} {
		require.NoError(t, store.Put(t.Context(), "a", []byte(value)))
		answer := kvtest.EtcdCall(t, server.Address, "kv/range", map[string]any{"key": []byte("a")})
		require.Equal(t, "{}\n", string(answer.Kvs[0].Value))
	}
}

func TestKeysInEtcdHangOnOneLeaseUnlessThereIsToBeNone(t *testing.T) {
	server := kvtest.Etcd.Start(t, kvtest.Serving{})
	leased, kept := openAt(t, server.Address, kv.EtcdOptions{Lease: 30 * time.Second}), openAt(t, server.Address, kv.EtcdOptions{})
	require.NoError(t, leased.Put(t.Context(), "a", []byte("1")))
	require.NoError(t, leased.Put(t.Context(), "b", []byte("1")))
	require.NoError(t, kept.Put(t.Context(), "c", []byte("1")))
	require.Positive(t, leaseOf(t, server.Address, "a"))
	require.Equal(t, leaseOf(t, server.Address, "a"), leaseOf(t, server.Address, "b"))
	require.Zero(t, leaseOf(t, server.Address, "c"))
	_, granted := timeOf(t, server.Address, leaseOf(t, server.Address, "a"))
	require.EqualValues(t, 30, granted)
}

func TestEntriesInEtcdOutliveTheirLeaseOnlyWhileTheirEngineLives(t *testing.T) {
	server := kvtest.Etcd.Start(t, kvtest.Serving{})
	store := openAt(t, server.Address, kv.EtcdOptions{Lease: time.Second})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	lease := leaseOf(t, server.Address, "a")
	_, seconds := timeOf(t, server.Address, lease)
	for range 2 {
		nobodys, _ := grant(t, server.Address, seconds)
		require.Eventually(t, func() bool {
			require.Equal(t, lease, leaseOf(t, server.Address, "a"))
			left, _ := timeOf(t, server.Address, nobodys)
			return left == -1
		}, patience, 50*time.Millisecond, "a lease as long, which nobody keeps alive, runs out")
	}
	require.NoError(t, store.Close(), "as the end of a process is")
	require.Eventually(t, func() bool { return leaseOf(t, server.Address, "a") == -1 }, patience, 50*time.Millisecond)
}

func TestEntriesComeBackAfterEtcdHasLostThem(t *testing.T) {
	data := t.TempDir()
	server := kvtest.StartEtcd(t, &data, kvtest.Serving{})
	store := openAt(t, server.Address, kv.EtcdOptions{Lease: time.Second})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	require.NoError(t, store.Put(t.Context(), "b", []byte("2")))
	require.NoError(t, store.Remove(t.Context(), "b", []byte("2")))
	server.Kill()
	data = t.TempDir()
	server.Restart()
	require.Eventually(t, func() bool { return leaseOf(t, server.Address, "a") > 0 }, patience, 50*time.Millisecond)
	require.Equal(t, "1", kvtest.MustGet(t, store, "a"))
	kvtest.RequireAbsent(t, store, "b")
}

func TestALostLeaseIsReplacedByTheNextPutToo(t *testing.T) {
	server := kvtest.Etcd.Start(t, kvtest.Serving{})
	store := openAt(t, server.Address, kv.EtcdOptions{Lease: time.Hour})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	require.NoError(t, store.Put(t.Context(), "theirs", []byte("1")))
	lost := leaseOf(t, server.Address, "a")
	kvtest.EtcdCall(t, server.Address, "lease/revoke", map[string]any{"ID": lost})
	kvtest.Etcd.Raw(t, server.Address, "theirs", []byte("2"))
	require.NoError(t, store.Put(t.Context(), "b", []byte("1")))
	require.Positive(t, leaseOf(t, server.Address, "b"))

	// What its keeper does when it hears of the loss, which takes it a third of the hour.
	logged, logs := observer.New(zap.WarnLevel)
	store.log = zap.New(logged)
	require.NoError(t, store.restore(lost))
	require.Equal(t, leaseOf(t, server.Address, "b"), leaseOf(t, server.Address, "a"))
	require.Equal(t, "2", kvtest.MustGet(t, store, "theirs"), "another client has put it")
	require.Equal(t, "theirs", logs.All()[0].ContextMap()["key"])
}
