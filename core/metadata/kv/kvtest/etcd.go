package kvtest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os/exec"
	"testing"
	"time"

	"kvferry/core/metadata/kv"

	"github.com/stretchr/testify/require"
)

// Etcd is the kind of clusters of etcd.
var Etcd = Kind{
	Scheme: "etcd", User: "root",
	Start: func(t *testing.T, s Serving) *Server {
		folder := t.TempDir()
		server := StartEtcd(t, &folder, s)
		if s.Password != "" {
			EtcdCall(t, server.Address, "auth/user/add", map[string]any{"name": "root", "password": s.Password})
			EtcdCall(t, server.Address, "auth/user/grant", map[string]any{"user": "root", "role": "root"})
			EtcdCall(t, server.Address, "auth/enable", nil)
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
		EtcdCall(t, server, "kv/put", map[string]any{"key": []byte(key), "value": value})
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

// EtcdReply is what the tests read of etcd's answers.
type EtcdReply struct {
	Kvs []struct {
		Value []byte
		Lease int64 `json:",string"`
	}
	ID         int64 `json:",string"`
	TTL        int64 `json:",string"`
	GrantedTTL int64 `json:",string"`
}

// EtcdCall asks a server without TLS by its gateway for JSON, which has nothing in common with the store's way.
func EtcdCall(t *testing.T, server, method string, request map[string]any) (reply EtcdReply) {
	body, err := json.Marshal(request)
	require.NoError(t, err)
	if request == nil {
		body = []byte("{}")
	}
	response, err := http.Post("http://"+server+"/v3/"+method, "application/json", bytes.NewReader(body))
	require.NoError(t, err)
	defer response.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	body, err = io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, "%s: %.300s", method, body)
	require.NoError(t, json.Unmarshal(body, &reply), "%.300s", body)
	return reply
}
