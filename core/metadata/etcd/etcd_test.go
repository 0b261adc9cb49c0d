package etcd

import (
	"testing"
	"time"

	"kvferry/core/metadata/kv"
	"kvferry/core/metadata/kv/kvtest"
	"kvferry/core/status"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
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
func leaseOf(t *testing.T, client *clientv3.Client, key string) clientv3.LeaseID {
	answer, err := client.Get(t.Context(), key)
	require.NoError(t, err)
	if len(answer.Kvs) == 0 {
		return -1
	}
	return clientv3.LeaseID(answer.Kvs[0].Lease)
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
	store, client := openAt(t, server.Address, kv.EtcdOptions{}), kvtest.EtcdClient(t, server.Address)
	for _, value := range []string{"{}", "{}\n"} {
		require.NoError(t, store.Put(t.Context(), "a", []byte(value)))
		answer, err := client.Get(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, "{}\n", string(answer.Kvs[0].Value))
	}
}

func TestKeysInEtcdHangOnOneLeaseUnlessThereIsToBeNone(t *testing.T) {
	server := kvtest.Etcd.Start(t, kvtest.Serving{})
	client := kvtest.EtcdClient(t, server.Address)
	leased, kept := openAt(t, server.Address, kv.EtcdOptions{Lease: 30 * time.Second}), openAt(t, server.Address, kv.EtcdOptions{})
	require.NoError(t, leased.Put(t.Context(), "a", []byte("1")))
	require.NoError(t, leased.Put(t.Context(), "b", []byte("1")))
	require.NoError(t, kept.Put(t.Context(), "c", []byte("1")))
	require.Positive(t, leaseOf(t, client, "a"))
	require.Equal(t, leaseOf(t, client, "a"), leaseOf(t, client, "b"))
	require.Zero(t, leaseOf(t, client, "c"))
	lease, err := client.TimeToLive(t.Context(), leaseOf(t, client, "a"))
	require.NoError(t, err)
	require.EqualValues(t, 30, lease.GrantedTTL)
}

func TestEntriesInEtcdOutliveTheirLeaseOnlyWhileTheirEngineLives(t *testing.T) {
	server := kvtest.Etcd.Start(t, kvtest.Serving{})
	client := kvtest.EtcdClient(t, server.Address)
	store := openAt(t, server.Address, kv.EtcdOptions{Lease: time.Second})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	lease := leaseOf(t, client, "a")
	granted, err := client.TimeToLive(t.Context(), lease)
	require.NoError(t, err)
	for range 2 {
		nobodys, err := client.Grant(t.Context(), granted.GrantedTTL)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			require.Equal(t, lease, leaseOf(t, client, "a"))
			left, err := client.TimeToLive(t.Context(), nobodys.ID)
			return err == nil && left.TTL == -1
		}, patience, 50*time.Millisecond, "a lease as long, which nobody keeps alive, runs out")
	}
	require.NoError(t, store.Close(), "as the end of a process is")
	require.Eventually(t, func() bool { return leaseOf(t, client, "a") == -1 }, patience, 50*time.Millisecond)
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
	client := kvtest.EtcdClient(t, server.Address)
	require.Eventually(t, func() bool { return leaseOf(t, client, "a") > 0 }, patience, 50*time.Millisecond)
	require.Equal(t, "1", kvtest.MustGet(t, store, "a"))
	kvtest.RequireAbsent(t, store, "b")
}

func TestALostLeaseIsReplacedByTheNextPutToo(t *testing.T) {
	server := kvtest.Etcd.Start(t, kvtest.Serving{})
	store, client := openAt(t, server.Address, kv.EtcdOptions{Lease: time.Hour}), kvtest.EtcdClient(t, server.Address)
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	require.NoError(t, store.Put(t.Context(), "theirs", []byte("1")))
	lost := leaseOf(t, client, "a")
	_, err := client.Revoke(t.Context(), lost)
	require.NoError(t, err)
	kvtest.Etcd.Raw(t, server.Address, "theirs", []byte("2"))
	require.NoError(t, store.Put(t.Context(), "b", []byte("1")))
	require.Positive(t, leaseOf(t, client, "b"))

	// What its keeper does when it hears of the loss, which takes it a third of the hour.
	logged, logs := observer.New(zap.WarnLevel)
	store.log = zap.New(logged)
	require.NoError(t, store.restore(store.client, lost))
	require.Equal(t, leaseOf(t, client, "b"), leaseOf(t, client, "a"))
	require.Equal(t, "2", kvtest.MustGet(t, store, "theirs"), "somebody else's meanwhile")
	require.Equal(t, "theirs", logs.All()[0].ContextMap()["key"])
}
