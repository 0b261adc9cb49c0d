package etcd

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"kvferry/core/metadata/kv"
	"kvferry/core/metadata/kv/kvtest"

	"github.com/stretchr/testify/require"
)

// one is the reply of a cluster in which every key is "1".
const one = "\x12\x03*\x011"

// working answers everything.
func working(string, string) (string, *callError) { return one, nil }

func TestATokenThatTheClusterDoesNotKnowIsReplaced(t *testing.T) {
	for _, message := range []string{invalidToken, noToken, outdatedToken} {
		var logins atomic.Int32
		server := serveFake(t, func(method, token string) (string, *callError) {
			switch {
			case method == methodAuthenticate && logins.Add(1) == 1:
				return "\x12\x05first", nil
			case method == methodAuthenticate:
				return "\x12\x06second", nil
			case token == "second":
				return one, nil
			}
			return "", &callError{16, message}
		})
		store := openAt(t, server.address, kv.EtcdOptions{Username: "me", Password: "secret"})
		require.NoError(t, store.Put(t.Context(), "a", []byte("1")), "the first token is not known")
		require.Equal(t, "1", kvtest.MustGet(t, store, "a"))
		require.EqualValues(t, 2, logins.Load())
		require.Equal(t, []string{methodAuthenticate + " ", "KV/Put first", methodAuthenticate + " ", "KV/Put second", "KV/Range second"}, server.calls)
	}
}

func TestATokenThatIsNeverGoodIsNotReplacedForEver(t *testing.T) {
	server := serveFake(t, func(method, _ string) (string, *callError) {
		if method == methodAuthenticate {
			return "\x12\x05first", nil
		}
		return "", &callError{16, invalidToken}
	})
	store := openAt(t, server.address, kv.EtcdOptions{Username: "me", Password: "secret"})
	_, _, err := store.Get(t.Context(), "a")
	require.Contains(t, kvtest.RequireFailure(t, store, "a", err), invalidToken)
	require.Equal(t, attempts, server.count(methodAuthenticate))
}

func TestAUserMayBeGivenBeforeEtcdAsksForOne(t *testing.T) {
	server := kvtest.Etcd.Start(t, kvtest.Serving{})
	store := openAt(t, server.Address, kv.EtcdOptions{Username: "root", Password: "right"})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	kvtest.EtcdCall(t, server.Address, "auth/user/add", map[string]any{"name": "root", "password": "right"})
	kvtest.EtcdCall(t, server.Address, "auth/user/grant", map[string]any{"user": "root", "role": "root"})
	kvtest.EtcdCall(t, server.Address, "auth/enable", nil)
	require.NoError(t, store.Put(t.Context(), "a", []byte("2")))
	require.Equal(t, "2", kvtest.MustGet(t, store, "a"))
}

// losing breaks the connection instead of the first answer of a method.
func losing(lost string) answerer {
	var calls atomic.Int32
	return func(method, _ string) (string, *callError) {
		if method == lost && calls.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		return one, nil
	}
}

func TestAReadWhoseAnswerIsLostIsMadeAgain(t *testing.T) {
	server := serveFake(t, losing(methodRange))
	require.Equal(t, "1", kvtest.MustGet(t, openAt(t, server.address, kv.EtcdOptions{}), "a"))
	require.Equal(t, 2, server.count(methodRange))
}

func TestAWriteWhoseAnswerIsLostIsNotMadeAgain(t *testing.T) {
	server, other := serveFake(t, losing(methodPut)), kvtest.ClosedPort(t)
	store := openAt(t, server.address+";"+other, kv.EtcdOptions{})
	kvtest.RequireFailure(t, store, "a", store.Put(t.Context(), "a", []byte("1")))
	require.Equal(t, 1, server.count(methodPut))
}

func TestAWriteThatIsNotSentGoesToAnotherEndPoint(t *testing.T) {
	first, second := serveFake(t, working), serveFake(t, working)
	store := openAt(t, first.address+";"+second.address, kv.EtcdOptions{})
	require.Equal(t, "1", kvtest.MustGet(t, store, "a"))
	chosen, other := first, second
	if store.client.chosen.address == second.address {
		chosen, other = second, first
	}
	chosen.stop()
	store.client.chosen.renew() // or the store may take its connection to be alive still
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
	require.Equal(t, 0, chosen.count(methodPut))
	require.Equal(t, 1, other.count(methodPut))
}

func TestAnEndPointThatFallsSilentIsReplaced(t *testing.T) {
	var silent atomic.Pointer[fakeEtcd]
	release := make(chan struct{})
	serve := func() (f *fakeEtcd) {
		return serveFakeThat(t, func(f *fakeEtcd) answerer {
			return func(string, string) (string, *callError) {
				if silent.Load() == f {
					<-release
				}
				return one, nil
			}
		})
	}
	first, second := serve(), serve()
	t.Cleanup(func() { close(release) })
	store, err := open("etcd://"+first.address+";"+second.address, kv.Options{Connection: kvtest.Impatient()})
	require.NoError(t, err)
	defer store.Close()
	require.Equal(t, "1", kvtest.MustGet(t, store, "a"))
	silent.Store(first)
	if store.client.chosen.address == second.address {
		silent.Store(second)
	}
	require.Equal(t, "1", kvtest.MustGet(t, store, "a"), "by the other one, in time")
	require.NotEqual(t, silent.Load().address, store.client.chosen.address)
}

func TestAnEndPointOfAnotherServiceIsPassedOver(t *testing.T) {
	other := serveFake(t, func(string, string) (string, *callError) { return "", &callError{12, "unknown service"} })
	leaderless := serveFake(t, func(string, string) (string, *callError) {
		return "", &callError{codeUnavailable, "etcdserver: no leader"}
	})
	server := serveFake(t, working)
	store := openAt(t, strings.Join([]string{other.address, leaderless.address, server.address}, ";"), kv.EtcdOptions{})
	require.Equal(t, "1", kvtest.MustGet(t, store, "a"))
	require.Equal(t, server.address, store.client.chosen.address)
}

func TestEachEndPointIsInTheErrorWhenNoneAnswers(t *testing.T) {
	first, second := kvtest.ClosedPort(t), kvtest.ClosedPort(t)
	store := openAt(t, first+";"+second, kv.EtcdOptions{})
	_, _, err := store.Get(t.Context(), "a")
	text := kvtest.RequireFailure(t, store, "a", err)
	for _, address := range []string{first, second} {
		require.Contains(t, text, address+": dial tcp "+address+": connect: connection refused")
	}
}

func TestALeaseThatTheClusterDoesNotGrantIsAnError(t *testing.T) {
	server := serveFake(t, working)
	store, err := open(kvtest.Etcd.Connect(server.address, kvtest.Access{}))
	require.NoError(t, err)
	defer store.Close()
	text := kvtest.RequireFailure(t, store, "a", store.Put(t.Context(), "a", []byte("1")))
	require.Contains(t, text, "grants the lease 0")
	require.Zero(t, server.count(methodPut))
}
