package metadata

import (
	"os/exec"
	"testing"
	"time"

	"kvferry/core/status"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

var etcdKind = kvKind{
	name: "etcd", user: "root",
	start: func(t *testing.T, s serving) *storeServer {
		folder := t.TempDir()
		server := startEtcd(t, &folder, s)
		if s.password != "" {
			client := etcdClient(t, server.address)
			_, err := client.UserAdd(t.Context(), "root", s.password)
			require.NoError(t, err)
			_, err = client.UserGrantRole(t.Context(), "root", "root")
			require.NoError(t, err)
			_, err = client.AuthEnable(t.Context())
			require.NoError(t, err)
		}
		return server
	},
	open: func(t *testing.T, server string, a access) kv {
		return openEtcd(t, server, a.StoreOptions, EtcdOptions{Username: a.user, Password: a.password, TLS: a.secure, Lease: time.Minute})
	},
	raw: func(t *testing.T, server, key string, value []byte) {
		_, err := etcdClient(t, server).Put(t.Context(), key, string(value))
		require.NoError(t, err)
	},
}

// startEtcd starts a cluster of one, with its data in a folder: at each start the one that *data names then.
func startEtcd(t *testing.T, data *string, s serving) *storeServer {
	file := program(t, "etcd", "etcd-server")
	return startServer(t, "serving client traffic", func(port, second string) *exec.Cmd {
		scheme := "http"
		var more []string
		if s.tls != nil {
			scheme, more = "https", []string{"--cert-file", s.tls.cert, "--key-file", s.tls.key}
		}
		if s.ask {
			more = append(more, "--client-cert-auth", "--trusted-ca-file", s.tls.ca)
		}
		client, peer := scheme+"://127.0.0.1:"+port, "http://127.0.0.1:"+second
		return exec.Command(file, append(more, "--name", "one", "--data-dir", *data, "--logger", "zap", "--log-outputs", "stderr",
			"--heartbeat-interval", "20", "--election-timeout", "200",
			"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
			"--initial-advertise-peer-urls", peer, "--initial-cluster", "one="+peer)...)
	})
}

func openEtcd(t *testing.T, servers string, o StoreOptions, e EtcdOptions) *etcdStore {
	store, err := newEtcd(servers, o, e, nil)
	require.NoError(t, err)
	t.Cleanup(func() { store.close() })
	return store.(*etcdStore)
}

func etcdClient(t *testing.T, server string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{server}, Logger: zap.NewNop(), MaxCallSendMsgSize: 4 * maxValue})
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	return client
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
	store := openEtcd(t, "10.0.0.1;[::1]:1;a:2", StoreOptions{}, EtcdOptions{Username: "me", Password: "secret"})
	require.Equal(t, "etcd://10.0.0.1:2379;[::1]:1;a:2", store.name())
	for _, servers := range []string{"", ";", "a;", "me:secret@a"} {
		_, err := newEtcd(servers, StoreOptions{}, EtcdOptions{}, nil)
		require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
		require.NotContains(t, err.Error(), "secret")
	}
	_, err := newEtcd("a", StoreOptions{CA: "/no/such/file"}, EtcdOptions{TLS: true}, nil)
	require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
}

func TestEtcdIsReachedByAnyOfItsEndPoints(t *testing.T) {
	server := etcdKind.start(t, serving{})
	for _, servers := range []string{closedPort(t) + ";" + server.address, server.address + ";" + listener(t, drain)} {
		store := openEtcd(t, servers, StoreOptions{}, EtcdOptions{})
		require.NoError(t, store.put(t.Context(), "a", []byte("1")))
		require.Equal(t, "1", mustGet(t, store, "a"))
	}
}

func TestValuesInEtcdEndInANewlineAsMooncakesDo(t *testing.T) {
	server := etcdKind.start(t, serving{})
	store, client := openEtcd(t, server.address, StoreOptions{}, EtcdOptions{}), etcdClient(t, server.address)
	for _, value := range []string{"{}", "{}\n"} {
		require.NoError(t, store.put(t.Context(), "a", []byte(value)))
		answer, err := client.Get(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, "{}\n", string(answer.Kvs[0].Value))
	}
}

func TestKeysInEtcdHangOnOneLeaseUnlessThereIsToBeNone(t *testing.T) {
	server := etcdKind.start(t, serving{})
	client := etcdClient(t, server.address)
	leased, kept := openEtcd(t, server.address, StoreOptions{}, EtcdOptions{Lease: 30 * time.Second}), openEtcd(t, server.address, StoreOptions{}, EtcdOptions{})
	require.NoError(t, leased.put(t.Context(), "a", []byte("1")))
	require.NoError(t, leased.put(t.Context(), "b", []byte("1")))
	require.NoError(t, kept.put(t.Context(), "c", []byte("1")))
	require.Positive(t, leaseOf(t, client, "a"))
	require.Equal(t, leaseOf(t, client, "a"), leaseOf(t, client, "b"))
	require.Zero(t, leaseOf(t, client, "c"))
	lease, err := client.TimeToLive(t.Context(), leaseOf(t, client, "a"))
	require.NoError(t, err)
	require.EqualValues(t, 30, lease.GrantedTTL)
}

func TestEntriesInEtcdOutliveTheirLeaseOnlyWhileTheirEngineLives(t *testing.T) {
	server := etcdKind.start(t, serving{})
	client := etcdClient(t, server.address)
	store := openEtcd(t, server.address, StoreOptions{}, EtcdOptions{Lease: time.Second})
	require.NoError(t, store.put(t.Context(), "a", []byte("1")))
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
	require.NoError(t, store.close(), "as the end of a process is")
	require.Eventually(t, func() bool { return leaseOf(t, client, "a") == -1 }, patience, 50*time.Millisecond)
}

func TestEntriesComeBackAfterEtcdHasLostThem(t *testing.T) {
	data := t.TempDir()
	server := startEtcd(t, &data, serving{})
	store := openEtcd(t, server.address, StoreOptions{}, EtcdOptions{Lease: time.Second})
	require.NoError(t, store.put(t.Context(), "a", []byte("1")))
	require.NoError(t, store.put(t.Context(), "b", []byte("2")))
	require.NoError(t, store.remove(t.Context(), "b", []byte("2")))
	server.kill()
	data = t.TempDir()
	server.restart()
	client := etcdClient(t, server.address)
	require.Eventually(t, func() bool { return leaseOf(t, client, "a") > 0 }, patience, 50*time.Millisecond)
	require.Equal(t, "1", mustGet(t, store, "a"))
	requireAbsent(t, store, "b")
}

func TestALostLeaseIsReplacedByTheNextPutToo(t *testing.T) {
	server := etcdKind.start(t, serving{})
	store, client := openEtcd(t, server.address, StoreOptions{}, EtcdOptions{Lease: time.Hour}), etcdClient(t, server.address)
	require.NoError(t, store.put(t.Context(), "a", []byte("1")))
	require.NoError(t, store.put(t.Context(), "theirs", []byte("1")))
	lost := leaseOf(t, client, "a")
	_, err := client.Revoke(t.Context(), lost)
	require.NoError(t, err)
	etcdKind.raw(t, server.address, "theirs", []byte("2"))
	require.NoError(t, store.put(t.Context(), "b", []byte("1")))
	require.Positive(t, leaseOf(t, client, "b"))

	// What its keeper does when it hears of the loss, which takes it a third of the hour.
	logged, logs := observer.New(zap.WarnLevel)
	store.log = zap.New(logged)
	require.NoError(t, store.restore(store.client, lost))
	require.Equal(t, leaseOf(t, client, "b"), leaseOf(t, client, "a"))
	require.Equal(t, "2", mustGet(t, store, "theirs"), "somebody else's meanwhile")
	require.Equal(t, "theirs", logs.All()[0].ContextMap()["key"])
}
