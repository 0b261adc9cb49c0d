package etcd

import (
	"encoding/binary"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fakeEtcd answers calls of gRPC as a test wants it to.
type fakeEtcd struct {
	address string
	stop    func()

	mu    sync.Mutex
	calls []string // "KV/Put token"
}

// answerer is what a method does for a request with a token.
type answerer func(method, token string) (reply string, err *callError)

// serveFake runs a server until the test ends.
func serveFake(t *testing.T, answer answerer) *fakeEtcd {
	return serveFakeThat(t, func(*fakeEtcd) answerer { return answer })
}

// serveFakeThat is serveFake with an answerer that knows its server.
func serveFakeThat(t *testing.T, answering func(*fakeEtcd) answerer) *fakeEtcd {
	f := &fakeEtcd{}
	answer := answering(f)
	f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		method, token := strings.TrimPrefix(r.URL.Path, "/etcdserverpb."), r.Header.Get("Token")
		f.mu.Lock()
		f.calls = append(f.calls, method+" "+token)
		f.mu.Unlock()
		reply, failed := answer(method, token)
		w.Header().Set("Content-Type", "application/grpc")
		status, message := 0, ""
		if failed != nil {
			status, message = int(failed.code), failed.message
		} else {
			_, _ = io.WriteString(w, framed(reply))
		}
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", strconv.Itoa(status))
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", message)
	})
	return f
}

// serveRaw runs a server for HTTP/2 until the test ends, whatever it says by it.
func serveRaw(t *testing.T, handler http.HandlerFunc) *fakeEtcd {
	f := &fakeEtcd{}
	f.serve(t, handler)
	return f
}

func (f *fakeEtcd) serve(t *testing.T, handler http.HandlerFunc) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		handler(w, r)
	}))
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server.Config.Protocols = &protocols
	server.Start()
	f.address = server.Listener.Addr().String()
	f.stop = sync.OnceFunc(func() { server.CloseClientConnections(); server.Close() })
	t.Cleanup(f.stop)
}

// count is how many calls of a method there were.
func (f *fakeEtcd) count(method string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, call := range f.calls {
		if strings.HasPrefix(call, method+" ") {
			n++
		}
	}
	return n
}

func framed(message string) string {
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))) + message
}
