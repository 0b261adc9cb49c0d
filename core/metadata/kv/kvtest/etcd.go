package kvtest

import (
	"os/exec"
	"testing"
	"time"

	"kvferry/core/metadata/kv"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Etcd is the kind of clusters of etcd.
var Etcd = Kind{
	Scheme: "etcd", User: "root",
	Start: func(t *testing.T, s Serving) *Server {
		folder := t.TempDir()
		server := StartEtcd(t, &folder, s)
		if s.Password != "" {
			client := EtcdClient(t, server.Address)
			_, err := client.UserAdd(t.Context(), "root", s.Password)
			require.NoError(t, err)
			_, err = client.UserGrantRole(t.Context(), "root", "root")
			require.NoError(t, err)
			_, err = client.AuthEnable(t.Context())
			require.NoError(t, err)
		}
		return server
	},
	Connect: func(server string, a Access) (string, kv.Options) {
		return "etcd://" + server, kv.Options{
			Connection: a.Connection,
			Etcd:       kv.EtcdOptions{Username: a.User, Password: a.Password, TLS: a.Secure, Lease: time.Minute},
		}
	},
	Raw: func(t *testing.T, server, key string, value []byte) {
		_, err := EtcdClient(t, server).Put(t.Context(), key, string(value))
		require.NoError(t, err)
	},
}

// StartEtcd starts a cluster of one, with its data in a folder: at each start the one that *data names then.
func StartEtcd(t *testing.T, data *string, s Serving) *Server {
	file := program(t, "etcd", "etcd-server")
	return startServer(t, "serving client traffic", func(port, second string) *exec.Cmd {
		scheme := "http"
		var more []string
		if s.TLS != nil {
			scheme, more = "https", []string{"--cert-file", s.TLS.Cert, "--key-file", s.TLS.Key}
		}
		if s.Ask {
			more = append(more, "--client-cert-auth", "--trusted-ca-file", s.TLS.CA)
		}
		client, peer := scheme+"://127.0.0.1:"+port, "http://127.0.0.1:"+second
		return exec.Command(file, append(more, "--name", "one", "--data-dir", *data, "--logger", "zap", "--log-outputs", "stderr",
			"--heartbeat-interval", "20", "--election-timeout", "200",
			"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
			"--initial-advertise-peer-urls", peer, "--initial-cluster", "one="+peer)...)
	})
}

// EtcdClient is etcd's own client, which is closed with the test.
func EtcdClient(t *testing.T, server string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{server}, Logger: zap.NewNop(), MaxCallSendMsgSize: 4 * kv.MaxValue})
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}
