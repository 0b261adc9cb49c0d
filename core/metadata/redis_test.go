package metadata

import (
	"os/exec"
	"testing"

	"kvferry/core/status"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

var redisKind = kvKind{
	name: "redis", user: "alice",
	start: func(t *testing.T, s serving) *storeServer {
		file, folder := program(t, "redis-server", "redis-server"), t.TempDir()
		return startServer(t, "Ready to accept connections", func(port, _ string) *exec.Cmd {
			arguments := []string{"--bind", "127.0.0.1", "--dir", folder, "--save", ""}
			if s.password != "" {
				arguments = append(arguments, "--requirepass", s.password, "--user", "alice", "on", ">"+s.password, "~*", "&*", "+@all")
			}
			if s.tls == nil {
				return exec.Command(file, append(arguments, "--port", port)...)
			}
			ask := map[bool]string{true: "yes", false: "no"}[s.ask]
			return exec.Command(file, append(arguments, "--port", "0", "--tls-port", port, "--tls-cert-file", s.tls.cert,
				"--tls-key-file", s.tls.key, "--tls-ca-cert-file", s.tls.ca, "--tls-auth-clients", ask)...)
		})
	},
	open: func(t *testing.T, server string, a access) kv {
		return openRedis(t, server, a.secure, a.StoreOptions, RedisOptions{Username: a.user, Password: a.password})
	},
	raw: func(t *testing.T, server, key string, value []byte) {
		client := redis.NewClient(&redis.Options{Addr: server})
		require.NoError(t, client.Set(t.Context(), key, value, 0).Err())
		require.NoError(t, client.Close())
	},
}

func openRedis(t *testing.T, server string, secure bool, o StoreOptions, r RedisOptions) kv {
	store, err := newRedis(server, secure, o, r)
	require.NoError(t, err)
	t.Cleanup(func() { store.close() })
	return store
}

func TestARedisStoreIsNamedByItsURL(t *testing.T) {
	require.Equal(t, "redis://10.0.0.1:6379", openRedis(t, "10.0.0.1", false, StoreOptions{}, RedisOptions{Password: "secret"}).name())
	require.Equal(t, "rediss://[::1]:1", openRedis(t, "[::1]:1", true, StoreOptions{}, RedisOptions{}).name())
}

func TestAPasswordForRedisNeedsNoUser(t *testing.T) {
	server := redisKind.start(t, serving{password: "right"})
	store := openRedis(t, server.address, false, StoreOptions{}, RedisOptions{Password: "right"})
	require.NoError(t, store.put(t.Context(), "a", []byte("1")))
}

func TestDatabasesOfRedisAreApart(t *testing.T) {
	server := redisKind.start(t, serving{})
	first, second := openRedis(t, server.address, false, StoreOptions{}, RedisOptions{DB: 1}), openRedis(t, server.address, false, StoreOptions{}, RedisOptions{DB: 15})
	require.NoError(t, first.put(t.Context(), "a", []byte("1")))
	require.Equal(t, "1", mustGet(t, first, "a"))
	requireAbsent(t, second, "a")

	none := openRedis(t, server.address, false, StoreOptions{}, RedisOptions{DB: 255})
	_, _, err := none.get(t.Context(), "a")
	require.Contains(t, requireFailure(t, none, "a", err), "DB index is out of range")
}

func TestAKeyOfRedisThatIsNoTextIsAnError(t *testing.T) {
	server := redisKind.start(t, serving{})
	client := redis.NewClient(&redis.Options{Addr: server.address})
	defer client.Close()
	require.NoError(t, client.RPush(t.Context(), "a", "1").Err())
	store := openRedis(t, server.address, false, StoreOptions{}, RedisOptions{})
	_, _, err := store.get(t.Context(), "a")
	require.Contains(t, requireFailure(t, store, "a", err), "WRONGTYPE")
	requireFailure(t, store, "a", store.remove(t.Context(), "a", []byte("1")))
}

func TestRedisWithoutItsFilesForTLSIsNotOpened(t *testing.T) {
	_, err := newRedis("127.0.0.1", true, StoreOptions{CA: "/no/such/file"}, RedisOptions{})
	require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
}
