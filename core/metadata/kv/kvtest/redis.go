package kvtest

import (
	"os/exec"
	"testing"

	"kvferry/core/metadata/kv"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// Redis is the kind of Redis servers.
var Redis = Kind{
	Scheme: "redis", User: "alice",
	Start: func(t *testing.T, s Serving) *Server {
		file, folder := program(t, "redis-server", "redis-server"), t.TempDir()
		return startServer(t, "Ready to accept connections", func(port, _ string) *exec.Cmd {
			arguments := []string{"--bind", "127.0.0.1", "--dir", folder, "--save", ""}
			if s.Password != "" {
				arguments = append(arguments, "--requirepass", s.Password, "--user", "alice", "on", ">"+s.Password, "~*", "&*", "+@all")
			}
			if s.TLS == nil {
				return exec.Command(file, append(arguments, "--port", port)...)
			}
			ask := map[bool]string{true: "yes", false: "no"}[s.Ask]
			return exec.Command(file, append(arguments, "--port", "0", "--tls-port", port, "--tls-cert-file", s.TLS.Cert,
				"--tls-key-file", s.TLS.Key, "--tls-ca-cert-file", s.TLS.CA, "--tls-auth-clients", ask)...)
		})
	},
	Connect: func(server string, a Access) (string, kv.Options) {
		scheme := map[bool]string{true: "rediss", false: "redis"}[a.Secure]
		return scheme + "://" + server, kv.Options{
			Connection: a.Connection, Redis: kv.RedisOptions{Username: a.User, Password: a.Password},
		}
	},
	Raw: func(t *testing.T, server, key string, value []byte) {
		client := redis.NewClient(&redis.Options{Addr: server})
		require.NoError(t, client.Set(t.Context(), key, value, 0).Err())
		require.NoError(t, client.Close())
	},
}
