package core_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"kvferry/core"
	"kvferry/core/address"
	"kvferry/core/metadata"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// metadataServer is a map behind HTTP.
type metadataServer struct {
	mu     sync.Mutex
	values map[string][]byte
	url    string
	broken bool
}

func startMetadataServer(t *testing.T) *metadataServer {
	s := &metadataServer{values: map[string][]byte{}}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL + "/metadata"
	return s
}

func (s *metadataServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := r.URL.Query().Get("key")
	value, found := s.values[key]
	switch {
	case s.broken:
		http.Error(w, "out of order", http.StatusInternalServerError)
	case r.Method == http.MethodPut:
		s.values[key], _ = io.ReadAll(r.Body)
	case !found:
		http.Error(w, "", http.StatusNotFound)
	case r.Method == http.MethodDelete:
		delete(s.values, key)
	default:
		_, _ = w.Write(value)
	}
}

func (s *metadataServer) setBroken(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

func (s *metadataServer) keys() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.values)
}

// options are those of an engine that is reached at 127.0.0.1.
func (s *metadataServer) options(name string) core.Options {
	o := core.Options{Name: name, Metadata: s.url, Config: core.DefaultConfig(), Log: zap.NewNop()}
	o.Config.BindAddress = "127.0.0.1"
	return o
}

// join starts an engine that ends with the test.
func (s *metadataServer) join(t *testing.T, o core.Options) *core.Engine {
	return s.joinAt(t, o, core.Endpoint{Port: 9, ProtoVersion: 2})
}

func (s *metadataServer) joinAt(t *testing.T, o core.Options, at core.Endpoint) *core.Engine {
	e, err := core.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	install(t, e, &transporttest.Transport{Address: at})
	return e
}

// redirect has the store name another engine's address for an engine.
func (s *metadataServer) redirect(name string, to *core.Engine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values["mooncake/rpc_meta/"+name] = fmt.Appendf(nil, `{"ip_or_host_name":"127.0.0.1","rpc_port":%d}`, to.HandshakePort())
}

func TestWithCentralMetadataPeersFindEachOtherByNamesThatNeedNotBeAddresses(t *testing.T) {
	s := startMetadataServer(t)
	for i, name := range []string{"decode-3", "decode-4.example:12345", "10.255.255.1:7:npu_2", "2001:db8::1"} {
		here, there := s.join(t, s.options(fmt.Sprint("prefill-", i))), s.join(t, s.options(name))
		require.Equal(t, name, there.Name())
		require.Equal(t, fmt.Sprint("127.0.0.1:", there.HandshakePort()), there.Address())
		require.Equal(t, "127.0.0.1", there.ListenHost())
		require.Equal(t, "127.0.0.1", there.Descriptor().DataHost)
		memory := pages(t, 4096)
		require.NoError(t, there.Register(at(memory), 4096, "cpu:0", true))

		id := open(t, here, name)
		require.Equal(t, id, open(t, here, name))
		require.Equal(t, core.SegmentID(core.LocalSegment), open(t, there, name))
		addr, err := here.FirstBuffer(name)
		require.NoError(t, err)
		require.EqualValues(t, at(memory), addr)
		require.NoError(t, here.Probe(name))
		require.NoError(t, here.Notify(id, hello))
		require.Equal(t, []metadata.Notification{hello}, there.Notifications())

		_, err = metadata.Client{}.FetchDescriptor(context.Background(), there.Address())
		require.ErrorContains(t, err, "central store", "who asks for it in P2P mode is told why there is nothing")
	}
}

func TestATakenNameIsRefusedUntilItsEngineEnds(t *testing.T) {
	s := startMetadataServer(t)
	first := s.join(t, s.options("node1"))
	_, err := core.New(s.options("node1"))
	requireCode(t, status.Metadata, err)
	require.ErrorContains(t, err, `the name "node1" is taken: a live engine answers at `+first.Address())
	open(t, s.join(t, s.options("node2")), "node1")
	require.NoError(t, first.Withdraw(), "as SIGTERM does with graceful shutdown")
	s.join(t, s.options("node1"))
	require.NoError(t, first.Register(at(pages(t, 4096)), 4096, "cpu:0", true))
	require.NoError(t, first.Close())
	require.Equal(t, 4, s.keys())
}

func TestAnEngineLeavesNothingBehind(t *testing.T) {
	s := startMetadataServer(t)
	e := s.join(t, s.options("node1"))
	require.Equal(t, 2, s.keys())
	require.NoError(t, e.Close())
	require.Zero(t, s.keys())
}

func TestWhileTheMetadataStoreIsAwayKnownPeersAreReached(t *testing.T) {
	s := startMetadataServer(t)
	here, there := s.join(t, s.options("node1")), s.join(t, s.options("node2"))
	other := s.join(t, s.options("node3"))
	id := open(t, here, there.Name())
	require.NoError(t, here.Notify(id, hello))

	s.setBroken(true)
	require.Equal(t, id, open(t, here, there.Name()))
	again, err := here.OpenSegmentNoCache(there.Name())
	require.NoError(t, err)
	require.Equal(t, id, again)
	require.NoError(t, here.Notify(id, hello))
	_, err = here.OpenSegment(other.Name())
	requireCode(t, status.Metadata, err)
	require.ErrorContains(t, err, s.url)
	require.ErrorContains(t, err, "out of order")
	memory := pages(t, 4096)
	require.ErrorContains(t, there.Register(at(memory), 4096, "cpu:0", true), s.url)

	s.setBroken(false)
	open(t, here, other.Name())
	require.NoError(t, there.Register(at(memory), 4096, "cpu:0", true), "it can be tried again")
}

func TestTheAddressThatIsPublished(t *testing.T) {
	s := startMetadataServer(t)
	o := s.options("127.0.0.1:0")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	o.Name, o.Config.LegacyPortBinding, o.Config.BindAddress = "127.0.0.1:"+strconv.Itoa(port), true, "192.0.2.1"
	e := s.join(t, o)
	assert.Equal(t, o.Name, e.Address(), "the name's host and port")

	o = s.options("node2")
	o.Config.BindAddress = "[2001:db8::1]"
	e = s.join(t, o)
	assert.Equal(t, fmt.Sprintf("[2001:db8::1]:%d", e.HandshakePort()), e.Address())
	assert.Equal(t, "2001:db8::1", e.Descriptor().DataHost)
	assert.Empty(t, e.ListenHost(), "the address is somebody's who passes connections on")

	o = s.options("node3")
	o.Config.BindAddress = "a b"
	_, err = core.New(o)
	requireCode(t, status.InvalidArgument, err)
	assert.ErrorContains(t, err, "MC_TCP_BIND_ADDRESS")

	for _, ipv6 := range []bool{false, true} {
		o := s.options(fmt.Sprint("node-", ipv6))
		o.Config.BindAddress, o.Config.UseIPv6 = "", ipv6
		published := address.Published(ipv6)
		if published == "" {
			_, err := core.New(o)
			assert.ErrorContains(t, err, "MC_TCP_BIND_ADDRESS")
			continue
		}
		e := s.join(t, o)
		host, _, err := net.SplitHostPort(e.Address())
		require.NoError(t, err)
		assert.Equal(t, published, host)
		assert.Equal(t, ipv6, net.ParseIP(host).To4() == nil)
		assert.False(t, net.ParseIP(host).IsLoopback())
	}
}

// Whoever can write the store can change where notifications go: the address there is not signed.
func TestANotificationForAnEngineWithASecretNeverGoesWithoutTLS(t *testing.T) {
	s := startMetadataServer(t)
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte("0123456789abcdef0123456789abcdef"), 0o600))
	secured := func(name string) *core.Engine {
		o := s.options(name)
		o.Config.Security.SecretFile, o.Config.Security.Mode = path, "prefer"
		return s.joinAt(t, o, core.Endpoint{Port: 9, ProtoVersion: 2, Hello: 1})
	}
	there, here, stranger := secured("node1"), secured("node2"), s.join(t, s.options("node3"))
	id := open(t, here, "node1")
	require.NoError(t, here.Notify(id, hello))
	require.Equal(t, []metadata.Notification{hello}, there.Notifications())

	s.redirect("node1", stranger)
	require.Error(t, here.Notify(id, hello))
	require.Empty(t, stranger.Notifications())
}
