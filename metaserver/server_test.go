package metaserver

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvferry/core/status"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestEntriesAreStoredReplacedAndDeleted(t *testing.T) {
	_, c := start(t, Options{})
	for _, key := range []string{"mooncake/ram/10.0.0.1:12345", "a+b &c=d%", "clé/名前", "[fe80::1%eth0]:1"} {
		c.holds(key, "")
		c.put(key, "{\"a\": 1}\n")
		c.put(key, "{\"a\": 2}\n")
		c.holds(key, "{\"a\": 2}\n")
		c.refused(200, "deleted", "DELETE", key, "")
		c.refused(404, "not found", "DELETE", key, "")
		c.holds(key, "")
	}
	c.put("  padded ", "x")
	c.holds("padded", "x")
	code, value := c.do("PUT", "empty", "")
	require.Equal(t, 200, code, value)
	code, value = c.do("GET", "empty", "")
	require.Equal(t, 200, code)
	require.Empty(t, value)
}

func TestEntryOfALiveEngineIsReplacedOnlyAfterItWasDeleted(t *testing.T) {
	_, c := start(t, Options{})
	const key = "mooncake/cluster/rpc_meta/node"
	c.put(key, "first")
	c.put(key, "first")
	c.refused(400, "duplicate rpc_meta key", "PUT", key, "second")
	c.holds(key, "first")
	c.refused(200, "deleted", "DELETE", key, "")
	c.put(key, "second")
	c.holds(key, "second")
}

func TestADescriptorIsReplacedWhateverItsEngineIsCalled(t *testing.T) {
	_, c := start(t, Options{})
	for _, value := range []string{"first", "second"} {
		c.put("mooncake/ram/my-rpc_meta-1", value)
		c.holds("mooncake/ram/my-rpc_meta-1", value)
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	s, c := start(t, Options{Path: "/m"})
	root := strings.TrimSuffix(s.Address(), "/m")
	for _, x := range []struct {
		method, path string
		code         int
		words        string
	}{
		{"GET", "/m", 400, "a key is required"},
		{"PUT", "/m?key=", 400, "a key is required"},
		{"PUT", "/m?key=+%20", 400, "a key is required"},
		{"GET", "/m?key=%zz", 400, "cannot be read"},
		{"GET", "/m?key=%ff", 400, "not UTF-8"},
		{"PUT", "/m?key=" + strings.Repeat("k", maxKey+1), 414, "1025 bytes"},
		{"POST", "/m?key=x", 405, "not allowed"},
		{"HEAD", "/m?key=x", 405, ""},
		{"GET", "/", 404, "metadata is at /m"},
		{"GET", "/m/?key=x", 404, "metadata is at /m"},
		{"GET", "//m?key=x", 404, "metadata is at /m"},
		{"GET", "/metadata?key=x", 404, "metadata is at /m"},
		{"PUT", "/health", 405, ""},
		{"DELETE", "/metrics", 405, ""},
	} {
		code, text := c.send(x.method, root+x.path, nil, nil)
		require.Equal(t, x.code, code, "%s %.40s: %s", x.method, x.path, text)
		require.Contains(t, text, x.words)
	}
	keys, size := s.store.usage()
	require.Zero(t, keys)
	require.Zero(t, size)
}

func TestLongestKeyIsTakenHoweverItIsEscaped(t *testing.T) {
	_, c := start(t, Options{})
	code, text := c.send("PUT", c.url+"?key="+strings.Repeat("%41", maxKey), strings.NewReader("x"), nil)
	require.Equal(t, 200, code, text)
	c.holds(strings.Repeat("A", maxKey), "x")
}

func TestValuesAreBounded(t *testing.T) {
	s, c := start(t, Options{MaxValue: 100})
	c.put("k", strings.Repeat("v", 100))
	c.refused(413, "more than 100 bytes", "PUT", "k", strings.Repeat("w", 101))
	code, text := c.send("PUT", c.url+"?key=k", io.MultiReader(strings.NewReader(strings.Repeat("w", 101))), nil)
	require.Equal(t, 413, code, "of unknown length: %s", text)
	c.holds("k", strings.Repeat("v", 100))
	_, size := s.store.usage()
	require.EqualValues(t, 101, size)
}

func TestDefaultBoundOfAValueIsAMebibyte(t *testing.T) {
	_, c := start(t, Options{})
	c.put("k", strings.Repeat("v", 1<<20))
	c.refused(413, "more than 1048576 bytes", "PUT", "k", strings.Repeat("v", 1<<20+1))
}

func TestNumberOfKeysIsBounded(t *testing.T) {
	_, c := start(t, Options{MaxKeys: 2})
	c.put("a", "1")
	c.put("b", "1")
	c.refused(507, "2 keys", "PUT", "c", "1")
	c.put("b", "2")
	c.refused(200, "deleted", "DELETE", "a", "")
	c.put("c", "1")
	c.holds("c", "1")
}

func TestSumOfKeysAndValuesIsBounded(t *testing.T) {
	_, c := start(t, Options{MaxBytes: 10})
	c.put("aa", "123")
	c.put("bb", "123")
	c.refused(507, "11 bytes, more than 10", "PUT", "bb", "1234")
	c.put("aa", "12")
	c.put("bb", "1234")
}

func TestOneMachineCannotTakeAllTheRoom(t *testing.T) {
	greedy, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for what, o := range map[string]Options{
		"keys":  {MaxKeys: 100, MaxValue: 10, MaxBytes: 1 << 20},
		"bytes": {MaxKeys: 1 << 20, MaxValue: 10, MaxBytes: 1300},
	} {
		s := newStore(o)
		taken := 0
		for s.put(fmt.Sprintf("g%02d", taken), []byte("0123456789"), greedy) == nil {
			taken++
		}
		require.Equal(t, 50, taken, what)
		err := s.put("more", []byte("0123456789"), greedy)
		require.Equal(t, 507, refused(err).status)
		require.ErrorContains(t, err, "10.0.0.1 holds")
		require.NoError(t, s.put("o", []byte("0123456789"), other))
		require.NoError(t, s.put("own", []byte("0123456789"), netip.Addr{}))
		require.NoError(t, s.put("g00", []byte("9876543210"), other), "an entry stays in the share of who created it")
		require.NoError(t, s.remove("g01"))
		require.NoError(t, s.put("g01", []byte("0123456789"), greedy), "the room of a deleted entry is given back")
	}
}

func TestTokenIsRequired(t *testing.T) {
	s, c := start(t, Options{Token: "open sesame"})
	for _, header := range []string{"", "Bearer", "Bearer ", "Bearer open", "Bearer open sesame2", "Basic open sesame", "open sesame"} {
		code, _ := c.send("PUT", c.url+"?key=k", strings.NewReader("x"), http.Header{"Authorization": {header}})
		require.Equal(t, 401, code, header)
	}
	keys, _ := s.store.usage()
	require.Zero(t, keys)
	for _, header := range []string{"Bearer open sesame", "bearer open sesame"} {
		code, _ := c.send("PUT", c.url+"?key=k", strings.NewReader("x"), http.Header{"Authorization": {header}})
		require.Equal(t, 200, code, header)
	}
	code, _ := c.send("GET", strings.TrimSuffix(c.url, DefaultPath)+healthPath, nil, nil)
	require.Equal(t, 200, code, "health needs no token")
}

func TestHealthAndMetricsTellTheState(t *testing.T) {
	s, c := start(t, Options{})
	root := strings.TrimSuffix(s.Address(), DefaultPath)
	code, text := c.send("GET", root+healthPath, nil, nil)
	require.Equal(t, 200, code)
	require.Equal(t, "ok\n", text)

	c.put("key", "value")
	c.holds("absent", "")
	c.send("BREW", c.url+"?key=x", nil, nil)
	code, text = c.send("GET", root+metricsPath, nil, nil)
	require.Equal(t, 200, code)
	for _, line := range []string{
		"kvferry_metadata_keys 1",
		"kvferry_metadata_bytes 8",
		"kvferry_metadata_connections 1",
		`kvferry_metadata_requests_total{method="GET",status="200"} 1`,
		`kvferry_metadata_requests_total{method="GET",status="404"} 1`,
		`kvferry_metadata_requests_total{method="PUT",status="200"} 1`,
		`kvferry_metadata_requests_total{method="other",status="405"} 1`,
	} {
		require.Contains(t, text, "\n"+line+"\n")
	}
}

func TestConcurrentUseKeepsTheAccountRight(t *testing.T) {
	s, c := start(t, Options{MaxKeys: 20, MaxBytes: 300, Snapshot: filepath.Join(t.TempDir(), "s")})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 60 {
				key := fmt.Sprintf("key%d", (i*7+j)%30)
				switch j % 3 {
				case 0, 1:
					s.store.put(key, bytes.Repeat([]byte("v"), j), netip.Addr{})
				case 2:
					c.do("DELETE", key, "")
				}
				c.do("GET", key, "")
			}
		})
	}
	all.Wait()
	entries, _ := s.store.view()
	var sum int64
	for key, value := range entries {
		sum += int64(len(key) + len(value))
	}
	keys, size := s.store.usage()
	require.Equal(t, len(entries), keys)
	require.Equal(t, sum, size)
	require.LessOrEqual(t, keys, 20)
	require.LessOrEqual(t, size, int64(300))
}

func TestOneOfManyEnginesWithANameIsRegistered(t *testing.T) {
	_, c := start(t, Options{})
	var all sync.WaitGroup
	var codes [16]int
	for i := range codes {
		all.Go(func() { codes[i], _ = c.do("PUT", "rpc_meta/node", fmt.Sprint(i)) })
	}
	all.Wait()
	taken := -1
	for i, code := range codes {
		if code == 200 {
			require.Equal(t, -1, taken)
			taken = i
		} else {
			require.Equal(t, 400, code)
		}
	}
	c.holds("rpc_meta/node", fmt.Sprint(taken))
}

func dial(t *testing.T, s *Server) net.Conn {
	u, err := url.Parse(s.Address())
	require.NoError(t, err)
	conn, err := net.Dial("tcp", u.Host)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

func TestClientThatDoesNotFinishItsHeaderIsCutOff(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{})
	conn := dial(t, s)
	_, err := io.WriteString(conn, "GET /metadata?key=x HTTP/1.1\r\nHost: x\r\nSlow: ")
	require.NoError(t, err)
	c.put("k", "others are served meanwhile")
	_, err = io.ReadAll(conn)
	require.NoError(t, err, "the server closes the connection")
}

func TestBytesThatAreNoRequestAreAnsweredOrCutOff(t *testing.T) {
	s, c := start(t, Options{})
	for _, bytes := range []string{
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"PUT /metadata?key=x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
		"PUT /metadata?key=x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"PUT /metadata?key=x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
		"PUT /metadata?key=x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
		"PUT /metadata?key=x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nshort",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET /metadata?key=x\r\n\r\n",
		"PUT /metadata?key=x&pad=" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		strings.Repeat("x", 64<<10),
		"GET /" + strings.Repeat("\x00", 100) + " HTTP/1.1\r\n\r\n",
	} {
		conn := dial(t, s)
		io.WriteString(conn, bytes) // the server may hang up on the way
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		answer, _ := bufio.NewReader(conn).ReadString('\n')
		require.NotContains(t, answer, " 200 ", bytes)
	}
	c.holds("x", "")
	keys, _ := s.store.usage()
	require.Zero(t, keys, "of a value that arrived in part nothing is stored")
}

func TestABurstBeyondTheShareOfAnAddressWaitsForASlot(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := newSlots(inner.(*net.TCPListener), 4, time.Hour, zap.NewNop())
	accepted := make(chan net.Conn)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		defer close(accepted)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	})
	for range 3 {
		conn, err := net.Dial("tcp", inner.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
	}
	first, second := <-accepted, <-accepted
	require.True(t, l.scarce())
	require.Equal(t, 2, l.open())
	select {
	case <-accepted:
		t.Fatal("a third connection was accepted")
	default:
	}
	require.NoError(t, first.Close())
	first.Close() // gives no second slot back
	third := <-accepted
	require.Equal(t, 2, l.open())
	require.NoError(t, l.Close())
	accepting.Wait()
	require.NoError(t, second.Close())
	require.NoError(t, third.Close())
	require.Zero(t, l.open())
}

func TestConnectionsAreNotKeptWhereTheyAreScarce(t *testing.T) {
	for connections, scarce := range map[int64]bool{0: false, 3: true, 1: true} {
		s, c := start(t, Options{MaxConnections: connections})
		for range 3 {
			response, err := c.http.Get(s.Address() + "?key=x")
			require.NoError(t, err)
			response.Body.Close()
			require.Equal(t, scarce, response.Close)
		}
	}
}

// dialFrom opens a connection to a server from an address of this machine.
func dialFrom(t *testing.T, s *Server, from string) net.Conn {
	u, err := url.Parse(s.Address())
	require.NoError(t, err)
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", u.Host)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestClientsThatStallKeepNobodyOut(t *testing.T) {
	for what, sent := range map[string]string{
		"silent": "", "half a header": "GET /metadata?key=x HTTP/1.1\r\nHost: x\r\nSlow: ",
		"half a value": "PUT /metadata?key=x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nshort",
		"idle":         "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(what, func(t *testing.T) {
			logged, logs := observer.New(zap.WarnLevel)
			s, c := start(t, Options{MaxConnections: 8, Log: zap.New(logged), stepTimeout: time.Hour})
			c.http.Timeout = soon
			for range 3 {
				for range 10 {
					for _, from := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
						_, err := io.WriteString(dialFrom(t, s, from), sent)
						require.NoError(t, err)
					}
				}
				c.put("k", "v")
				code, _ := c.send("GET", strings.Replace(c.url, DefaultPath, healthPath, 1), nil, nil)
				require.Equal(t, 200, code)
			}
			if what != "idle" { // such a connection may have been closed after its answer
				require.NotEmpty(t, logs.FilterField(zap.Int("limit", 8)).All(), "who gave way is told")
			}
			require.LessOrEqual(t, logs.Len(), 2)
		})
	}
}

func TestSilentConnectionsGiveTheirSlotsBack(t *testing.T) {
	t.Parallel()
	s, c := start(t, Options{MaxConnections: 2})
	dial(t, s)
	dial(t, s)
	c.put("k", "v")
}

func TestCloseEndsIdleAndStalledConnections(t *testing.T) {
	s, c := start(t, Options{})
	c.put("k", "v")
	conn := dial(t, s)
	_, err := io.WriteString(conn, "PUT /metadata?key=x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nshort")
	require.NoError(t, err)
	dial(t, s)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "a second time")
	io.ReadAll(conn) // ends
	require.Error(t, s.store.put("late", []byte("x"), netip.Addr{}), "a change after Close would be lost")
}

func TestOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	for _, o := range []Options{
		{Port: -1}, {Port: 65536}, {Path: "metadata"}, {Path: "/a b"}, {Path: "/a?b"}, {Path: "/health"}, {Path: "/metrics"},
		{TLSCert: "x"}, {TLSKey: "x"}, {TLSCert: "/nonexistent", TLSKey: "/nonexistent"}, {TLSClientCA: "x"}, {Token: "a\nb"},
		{MaxKeys: -1}, {MaxValue: -1}, {MaxBytes: 1 << 41}, {MaxConnections: 1 << 21},
	} {
		s, err := Start(o)
		if err == nil {
			s.Close()
		}
		require.Equal(t, status.InvalidArgument, status.Of(err, status.OK), "%+v: %v", o, err)
	}
}

func TestPortInUseIsTold(t *testing.T) {
	s, _ := start(t, Options{})
	u, err := url.Parse(s.Address())
	require.NoError(t, err)
	var port int
	fmt.Sscan(u.Port(), &port)
	_, err = Start(Options{Host: "127.0.0.1", Port: port})
	require.Equal(t, status.Socket, status.Of(err, status.OK))
	require.ErrorContains(t, err, u.Host)
	require.ErrorContains(t, err, "address already in use")
}

func TestAddressIsOneThatOthersCanUse(t *testing.T) {
	for _, x := range []struct {
		o    Options
		want string
	}{
		{Options{Host: "127.0.0.1"}, "http://127.0.0.1:7/metadata"},
		{Options{Host: "::1", Path: "/a/b"}, "http://[::1]:7/a/b"},
		{Options{Host: "node7", TLSCert: "x", Path: "/m"}, "https://node7:7/m"},
		{Options{Host: ""}, "http://" + net.JoinHostPort(ownAddress(), "7") + "/metadata"},
		{Options{Host: "0.0.0.0"}, "http://" + net.JoinHostPort(ownAddress(), "7") + "/metadata"},
		{Options{Host: "::"}, "http://" + net.JoinHostPort(ownAddress(), "7") + "/metadata"},
	} {
		if x.o.Path == "" {
			x.o.Path = DefaultPath
		}
		require.Equal(t, x.want, x.o.address(&net.TCPAddr{Port: 7}))
	}
	require.NotEqual(t, "0.0.0.0", ownAddress())
}

func TestHostMayHaveBrackets(t *testing.T) {
	s, err := Start(Options{Host: "[::1]"})
	if err != nil {
		t.Skip("no IPv6: ", err)
	}
	defer s.Close()
	require.Contains(t, s.Address(), "http://[::1]:")
}

// certificate writes a certificate for 127.0.0.1 and its key, and returns the files and the pool that trusts it.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	cert, key = filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}), 0o600))
	pool = x509.NewCertPool()
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool.AddCert(parsed)
	return cert, key, pool
}

func TestHTTPSIsServedToWhoTrustsTheCertificate(t *testing.T) {
	cert, key, pool := certificate(t)
	s, strange := start(t, Options{TLSCert: cert, TLSKey: key})
	require.True(t, strings.HasPrefix(s.Address(), "https://"))
	c := clientOf(t, s, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true})
	c.put("k", "v")
	c.holds("k", "v")
	_, err := strange.http.Get(s.Address() + "?key=k")
	require.ErrorContains(t, err, "certificate")
	response, err := http.Get("http" + strings.TrimPrefix(s.Address(), "https") + "?key=k")
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, 400, response.StatusCode, "HTTP where HTTPS is served")
	http.DefaultClient.CloseIdleConnections()
}

func TestMetadataIsForClientsWithACertificateWhereTheyNeedOne(t *testing.T) {
	cert, key, pool := certificate(t)
	clientCert, clientKey, _ := certificate(t)
	otherCert, otherKey, _ := certificate(t)
	s, _ := start(t, Options{TLSCert: cert, TLSKey: key, TLSClientCA: clientCert})
	with := func(cert, key string) client {
		config := &tls.Config{RootCAs: pool}
		if cert != "" {
			pair, err := tls.LoadX509KeyPair(cert, key)
			require.NoError(t, err)
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		return clientOf(t, s, &http.Transport{TLSClientConfig: config})
	}
	with(clientCert, clientKey).put("k", "v")
	stranger := with("", "")
	stranger.refused(403, "client certificate", "GET", "k", "")
	code, _ := stranger.send("GET", strings.Replace(stranger.url, DefaultPath, healthPath, 1), nil, nil)
	require.Equal(t, 200, code, "a check of its health")
	_, err := with(otherCert, otherKey).http.Get(s.Address() + "?key=k")
	require.Error(t, err, "a certificate of another authority")
}

func TestChangedCertificatesAreInForceForTheNextConnection(t *testing.T) {
	cert, key, oldPool := certificate(t)
	newCert, newKey, newPool := certificate(t)
	oldClient, oldClientKey, _ := certificate(t)
	newClient, newClientKey, _ := certificate(t)
	folder := t.TempDir()
	served := Options{TLSCert: filepath.Join(folder, "crt"), TLSKey: filepath.Join(folder, "key"), TLSClientCA: filepath.Join(folder, "ca")}
	replace := func(to, by string) {
		content, err := os.ReadFile(by)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(to+".new", content, 0o600))
		require.NoError(t, os.Rename(to+".new", to))
	}
	replace(served.TLSCert, cert)
	replace(served.TLSKey, key)
	replace(served.TLSClientCA, oldClient)
	logged, logs := observer.New(zap.InfoLevel)
	served.Log = zap.New(logged)
	s, _ := start(t, served)
	s.files.Interval = 0
	with := func(pool *x509.CertPool, cert, key string) client {
		pair, err := tls.LoadX509KeyPair(cert, key)
		require.NoError(t, err)
		return clientOf(t, s, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &pair, nil
		}}})
	}
	before := with(oldPool, oldClient, oldClientKey)
	before.put("k", "v")

	replace(served.TLSCert, newCert) // half of the change
	before.holds("k", "v")
	replace(served.TLSKey, newKey)
	before.holds("k", "v")
	_, err := with(oldPool, oldClient, oldClientKey).http.Get(s.Address() + "?key=k")
	require.ErrorContains(t, err, "unknown authority")
	renewed := with(newPool, oldClient, oldClientKey)
	renewed.holds("k", "v")

	replace(served.TLSClientCA, newClient)
	for _, c := range []client{before, renewed} { // on the connections that they have
		c.refused(403, "client certificate", "GET", "k", "")
	}
	_, err = with(newPool, oldClient, oldClientKey).http.Get(s.Address() + "?key=k")
	require.Error(t, err)
	with(newPool, newClient, newClientKey).holds("k", "v")

	require.NoError(t, os.WriteFile(served.TLSClientCA, []byte("none"), 0o600))
	with(newPool, newClient, newClientKey).holds("k", "v")
	require.NotZero(t, logs.FilterMessageSnippet("the last good one stays in force").Len())
}

func TestAnOpenServerIsWarnedOf(t *testing.T) {
	cert, key, _ := certificate(t)
	for _, x := range []struct {
		o     Options
		warns int
	}{
		{Options{Host: "127.0.0.1"}, 0}, {Options{Host: "0.0.0.0"}, 1}, {Options{Host: "0.0.0.0", Token: "t"}, 0},
		{Options{Host: "0.0.0.0", TLSCert: cert, TLSKey: key}, 1},
		{Options{Host: "0.0.0.0", TLSCert: cert, TLSKey: key, TLSClientCA: cert}, 0},
	} {
		logged, logs := observer.New(zap.WarnLevel)
		x.o.Log = zap.New(logged)
		s, err := Start(x.o)
		require.NoError(t, err)
		require.NoError(t, s.Close())
		require.Equal(t, x.warns, logs.FilterMessageSnippet("without a token").Len(), "%+v", x.o)
	}
}

func FuzzKeyOf(f *testing.F) {
	for _, query := range []string{"key=a", "key=%20a%2Fb+", "key=a&key=b", "a=%zz", ";", "key=%ff", "key"} {
		f.Add(query)
	}
	find := func(text string) (string, error) {
		query, err := queryOf(text)
		if err != nil {
			return "", err
		}
		return keyOf(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		key, err := find(query)
		if err != nil {
			require.GreaterOrEqual(t, refused(err).status, 400)
			require.Less(t, refused(err).status, 500, "a client's mistake")
			return
		}
		again, err := find("key=" + url.QueryEscape(key))
		require.NoError(t, err)
		require.Equal(t, key, again)
	})
}

func TestKeysAreListedInPages(t *testing.T) {
	_, c := start(t, Options{})
	list := func(query string) (keys []string, more bool) {
		code, body := c.send("GET", c.url+"?"+query, nil, nil)
		require.Equal(t, 200, code, body)
		var page struct {
			Keys []string
			More bool
		}
		require.NoError(t, json.Unmarshal([]byte(body), &page))
		return page.Keys, page.More
	}
	none, more := list("prefix=")
	require.Empty(t, none)
	require.False(t, more)
	long := strings.Repeat("x", 900)
	const count = pageKeys + 5
	for i := range count {
		c.put(fmt.Sprintf("a/%04d", i), "1")
	}
	for i := range 200 {
		c.put(fmt.Sprintf("b/%s%03d", long, i), "1")
	}
	keys, more := list("prefix=a/")
	require.Len(t, keys, pageKeys)
	require.True(t, more)
	require.True(t, slices.IsSorted(keys))
	rest, more := list("prefix=a/&after=" + keys[pageKeys-1])
	require.Equal(t, []string{"a/1000", "a/1001", "a/1002", "a/1003", "a/1004"}, rest)
	require.False(t, more)
	keys, more = list("prefix=b/")
	require.True(t, more)
	require.Less(t, len(keys), 200, "a page has a limit in bytes, too")
	code, _ := c.send("DELETE", c.url+"?prefix=a/", nil, nil)
	require.Equal(t, 405, code)
}

func TestKeysAreListedForThoseWithTheTokenOnly(t *testing.T) {
	_, c := start(t, Options{Token: "secret"})
	code, _ := c.send("GET", c.url+"?prefix=", nil, nil)
	require.Equal(t, 401, code)
}
