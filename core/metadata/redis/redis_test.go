package redis

import (
	"testing"

	"kvferry/core/metadata/kv"
	"kvferry/core/metadata/kv/kvtest"
	"kvferry/core/status"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRedisIsACentralStore(t *testing.T) { kvtest.Run(t, kvtest.Redis) }

// openAt opens a store, which is closed with the test.
func openAt(t *testing.T, connection string, r kv.RedisOptions) kv.Store {
	s, err := open(connection, kv.Options{Redis: r})
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func TestARedisStoreIsNamedByItsURL(t *testing.T) {
	require.Equal(t, "redis://10.0.0.1:6379", openAt(t, "redis://10.0.0.1", kv.RedisOptions{Password: "secret"}).Name())
	require.Equal(t, "rediss://[::1]:1", openAt(t, "rediss://[::1]:1", kv.RedisOptions{}).Name())
}

func TestAPasswordForRedisNeedsNoUser(t *testing.T) {
	server := kvtest.Redis.Start(t, kvtest.Serving{Password: "right"})
	store := openAt(t, "redis://"+server.Address, kv.RedisOptions{Password: "right"})
	require.NoError(t, store.Put(t.Context(), "a", []byte("1")))
}

func TestDatabasesOfRedisAreApart(t *testing.T) {
	server := kvtest.Redis.Start(t, kvtest.Serving{})
	first, second := openAt(t, "redis://"+server.Address, kv.RedisOptions{DB: 1}), openAt(t, "redis://"+server.Address, kv.RedisOptions{DB: 15})
	require.NoError(t, first.Put(t.Context(), "a", []byte("1")))
	require.Equal(t, "1", kvtest.MustGet(t, first, "a"))
	kvtest.RequireAbsent(t, second, "a")

	none := openAt(t, "redis://"+server.Address, kv.RedisOptions{DB: 255})
	_, _, err := none.Get(t.Context(), "a")
	require.Contains(t, kvtest.RequireFailure(t, none, "a", err), "DB index is out of range")
}

func TestAKeyOfRedisThatIsNoTextIsAnError(t *testing.T) {
	server := kvtest.Redis.Start(t, kvtest.Serving{})
	client := redis.NewClient(&redis.Options{Addr: server.Address})
	defer client.Close()
	require.NoError(t, client.RPush(t.Context(), "a", "1").Err())
	store := openAt(t, "redis://"+server.Address, kv.RedisOptions{})
	_, _, err := store.Get(t.Context(), "a")
	require.Contains(t, kvtest.RequireFailure(t, store, "a", err), "WRONGTYPE")
	kvtest.RequireFailure(t, store, "a", store.Remove(t.Context(), "a", []byte("1")))
}

func TestRedisWithoutItsFilesForTLSIsNotOpened(t *testing.T) {
	_, err := open("rediss://127.0.0.1", kv.Options{Connection: kv.Connection{CA: "/no/such/file"}})
	require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
}
