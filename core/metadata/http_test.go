package metadata

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kvferry/core/metadata/kv"
	"kvferry/core/metadata/kv/kvtest"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// mooncakeServer does what Mooncake's HTTP metadata server does.
type mooncakeServer struct {
	mu     sync.Mutex
	values map[string]string
	asked  []string // "PUT mooncake/ram/a"
	fault  http.HandlerFunc
}

func (s *mooncakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil {
		s.fault(w, r)
		return
	}
	key := r.URL.Query().Get("key")
	s.asked = append(s.asked, r.Method+" "+key)
	value, found := s.values[key]
	switch {
	case key == "":
		http.Error(w, "metadata key is required", http.StatusBadRequest)
	case r.Method == http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) > 1<<20 {
			http.Error(w, "", http.StatusRequestEntityTooLarge)
		} else if found && strings.Contains(key, "rpc_meta") {
			http.Error(w, "Duplicate rpc_meta key not allowed", http.StatusBadRequest)
		} else {
			s.values[key] = string(body)
		}
	case !found:
		http.Error(w, "metadata not found", http.StatusNotFound)
	case r.Method == http.MethodGet:
		_, _ = io.WriteString(w, value)
	case r.Method == http.MethodDelete:
		delete(s.values, key)
	}
}

func (s *mooncakeServer) set(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[key] = value
}

func (s *mooncakeServer) value(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[key]
}

func (s *mooncakeServer) keys() (keys []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.values {
		keys = append(keys, key)
	}
	return keys
}

// clear forgets everything, as when the server is restarted.
func (s *mooncakeServer) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.values)
}

// requests counts those that start so, "PUT mooncake/ram/".
func (s *mooncakeServer) requests(prefix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, asked := range s.asked {
		if strings.HasPrefix(asked, prefix) {
			n++
		}
	}
	return n
}

// fail has a handler answer everything from now on; nil for the server itself.
func (s *mooncakeServer) fail(fault http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// serveMetadata runs a server until the test ends.
func serveMetadata(t *testing.T) (s *mooncakeServer, url string) {
	s = &mooncakeServer{values: map[string]string{}}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, server.URL + "/metadata"
}

// openHTTP opens a store until the test ends.
func openHTTP(t *testing.T, url string, o kv.Options) *httpStore {
	s, err := newHTTP(url, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestAnHTTPStoreKeepsValuesUnderAnyKey(t *testing.T) {
	ctx := context.Background()
	_, url := serveMetadata(t)
	s := openHTTP(t, url, kv.Options{})
	for _, key := range []string{"mooncake/ram/a:1", "mooncake/ram/[fe80::1%eth0]:1", "mooncake/x y&key=z+é/ram/a#?"} {
		_, found, err := s.Get(ctx, key)
		require.NoError(t, err)
		require.False(t, found)
		require.NoError(t, s.Put(ctx, key, []byte("1")))
		require.NoError(t, s.Put(ctx, key, []byte("2")))
		require.NoError(t, s.Remove(ctx, key, []byte("1")), "it holds something else, and stays")
		value, found, err := s.Get(ctx, key)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, "2", string(value))
		require.NoError(t, s.Remove(ctx, key, []byte("2")))
		require.NoError(t, s.Remove(ctx, key, []byte("2")), "it is gone")
		_, found, err = s.Get(ctx, key)
		require.NoError(t, err)
		require.False(t, found)
	}
}

func TestAnAddressThatTheServerDoesNotReplaceIsAnErrorUnlessItIsTheSame(t *testing.T) {
	ctx := context.Background()
	_, url := serveMetadata(t)
	s := openHTTP(t, url, kv.Options{})
	require.NoError(t, s.Put(ctx, "mooncake/rpc_meta/a", []byte("1")))
	require.NoError(t, s.Put(ctx, "mooncake/rpc_meta/a", []byte("1")))
	assert.ErrorContains(t, s.Put(ctx, "mooncake/rpc_meta/a", []byte("2")), "Duplicate rpc_meta")
}

func TestAURLMayHaveAnIPv6HostWithoutBrackets(t *testing.T) {
	for connection, want := range map[string]string{
		"http://fd00::2:15858/metadata":         "http://[fd00::2]:15858/metadata?",
		"http://[fd00::2]:15858/metadata":       "http://[fd00::2]:15858/metadata?",
		"https://fd00::2":                       "https://[fd00::2]?",
		"http://me:pass@fd00::2:15858/m?a=b":    "http://[fd00::2]:15858/m?a=b&",
		"http://fe80::1%eth0:15858/metadata":    "http://[fe80::1%25eth0]:15858/metadata?",
		"http://store:8080/metadata":            "http://store:8080/metadata?",
		"http://10.0.0.1:8080/fd00::2:15858":    "http://10.0.0.1:8080/fd00::2:15858?",
		"http://10.0.0.1/metadata?x=fd00::2:15": "http://10.0.0.1/metadata?x=fd00::2:15&",
	} {
		s, err := newHTTP(connection, kv.Options{})
		require.NoError(t, err)
		require.Equal(t, want, s.base)
	}
}

func TestARequestSaysWhoAsks(t *testing.T) {
	var got http.Header
	var query string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got, query = r.Header, r.URL.RawQuery }))
	defer server.Close()
	s := openHTTP(t, server.URL+"/metadata?tenant=7", kv.Options{HTTPToken: "let-me-in"})
	require.NoError(t, s.Put(context.Background(), "a/b", []byte("{}")))
	assert.Equal(t, "Bearer let-me-in", got.Get("Authorization"))
	assert.Equal(t, "application/json", got.Get("Content-Type"))
	assert.Equal(t, "tenant=7&key=a%2Fb", query)

	s = openHTTP(t, strings.Replace(server.URL, "://", "://us%65r:pass@", 1), kv.Options{})
	require.NoError(t, s.Put(context.Background(), "a", nil))
	assert.Equal(t, "Basic dXNlcjpwYXNz", got.Get("Authorization"))
	assert.NotContains(t, s.Name(), "pass")
}

// hostile are servers that do everything wrong, and what must be in the errors.
var hostile = map[string]struct {
	answer http.HandlerFunc
	says   string
}{
	"wrong token": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who are you?", http.StatusUnauthorized) },
		"401 Unauthorized, \"who are you?\"; MC_METADATA_HTTP_TOKEN"},
	"broken": {func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "out of order", http.StatusInternalServerError)
	},
		"500 Internal Server Error, \"out of order\""},
	"long-winded": {func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, strings.Repeat("no", 5000), http.StatusBadGateway)
	}, "502"},
	"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
	}, "redirects are not followed"},
	"endless value": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20+1)) }, "longer than 1048576 bytes"},
	"endless header": {func(w http.ResponseWriter, _ *http.Request) {
		for i := range 100 {
			w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 1000))
		}
	}, "header"},
	"silent":    {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no answer within 100ms"},
	"cut short": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	"cut in the middle": {func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "{")
	}, "EOF"},
	"dripping": {func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "{")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}, "no answer within 100ms"},
}

func TestAServerThatMisbehavesGivesAnErrorThatSaysHow(t *testing.T) {
	for name, c := range hostile {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // so that the server notices when the client goes
				c.answer(w, r)
			}))
			defer server.Close()
			limit := time.Minute
			if strings.Contains(c.says, "100ms") {
				limit = 100 * time.Millisecond
			}
			s := openHTTP(t, server.URL+"/metadata", kv.Options{Connection: kv.Connection{ReplyTimeout: limit}})
			_, _, err := s.Get(context.Background(), "mooncake/ram/a")
			for _, err := range []error{err, s.Remove(context.Background(), "mooncake/ram/a", nil)} {
				require.ErrorContains(t, err, "metadata store "+server.URL+"/metadata: GET mooncake/ram/a: ")
				require.ErrorContains(t, err, c.says)
				require.Equal(t, status.Metadata, status.Of(err, status.OK))
				require.Less(t, len(err.Error()), 1000)
			}
		})
	}
}

func TestAServerThatIsNotThereGivesAnErrorThatNamesIt(t *testing.T) {
	at := kvtest.ClosedPort(t)
	s := openHTTP(t, "http://user:secret@"+at+"/metadata", kv.Options{})
	_, _, err := s.Get(context.Background(), "mooncake/ram/a")
	assert.ErrorContains(t, err, "metadata store http://"+at+"/metadata: GET mooncake/ram/a: ")
	assert.ErrorContains(t, err, "refused")
	assert.NotContains(t, err.Error(), "secret")
	stopped, stop := context.WithCancel(context.Background())
	stop()
	assert.ErrorIs(t, s.Put(stopped, "a", nil), context.Canceled)
}

func TestAConnectionThatTheServerClosedIsReplaced(t *testing.T) {
	values := &mooncakeServer{values: map[string]string{}}
	server := httptest.NewUnstartedServer(values)
	var mu sync.Mutex
	idle := map[net.Conn]bool{}
	server.Config.ConnState = func(c net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		idle[c] = state == http.StateIdle
	}
	server.Start()
	defer server.Close()
	s := openHTTP(t, server.URL, kv.Options{})
	for range 20 {
		require.NoError(t, s.Put(context.Background(), "a", []byte("1")))
		require.NoError(t, s.Remove(context.Background(), "a", []byte("1")))
		mu.Lock()
		for c, is := range idle {
			if is {
				_ = c.Close()
			}
		}
		mu.Unlock()
	}
}

func TestOverTLSTheServerHasToBeTheRightOne(t *testing.T) {
	server := httptest.NewUnstartedServer(&mooncakeServer{values: map[string]string{}})
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	for _, trusting := range []kv.Connection{{CA: ca}, {Insecure: true}} {
		s := openHTTP(t, server.URL, kv.Options{Connection: trusting})
		require.NoError(t, s.Put(context.Background(), "a", []byte("1")))
	}
	s := openHTTP(t, server.URL, kv.Options{})
	assert.ErrorContains(t, s.Put(context.Background(), "a", []byte("1")), "certificate")
	s = openHTTP(t, strings.Replace(server.URL, "https", "http", 1), kv.Options{})
	assert.ErrorContains(t, s.Put(context.Background(), "a", []byte("1")), "HTTPS")
	_, plain := serveMetadata(t)
	s = openHTTP(t, strings.Replace(plain, "http", "https", 1), kv.Options{})
	assert.ErrorContains(t, s.Put(context.Background(), "a", []byte("1")), "HTTPS")

	for file, says := range map[string]string{"/no/such/file": "no such file", "/dev/null": "no certificate"} {
		_, err := newHTTP(server.URL, kv.Options{Connection: kv.Connection{CA: file}})
		assert.ErrorContains(t, err, "KVFERRY_METADATA_CA")
		assert.ErrorContains(t, err, says)
	}
	_, err := newHTTP(server.URL, kv.Options{Connection: kv.Connection{Cert: ca}})
	assert.ErrorContains(t, err, "KVFERRY_METADATA_CERT")
}
