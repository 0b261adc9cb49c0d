package client

import (
	"net"
	"runtime"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/address"
	"kvferry/core/metrics"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/samehost"
	"kvferry/tcp/server"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

var (
	testProcessors = sockio.NewProcessors(runtime.GOMAXPROCS(0))
	testLimiter    = samehost.NewCopyLimiter(runtime.GOMAXPROCS(0)/2, testProcessors.Contention)

	testMaxRecords  uint64              // of connections under TLS; 0 for the limit of sockio
	testStuck       time.Duration       // how long a lane may take to end; 0 for stuckTimeout
	testDescriptors *sockio.Descriptors // of the engines that a test makes; no limit unless it sets one
)

// testTransport is a client, and a server beside it, so that engines with it can be targets as well.
type testTransport struct {
	*Client
	server   *server.Server
	endpoint core.Endpoint
}

// openForTest makes a transport for core.Engine.Install.
func openForTest(e *core.Engine) (core.Transport, error) {
	config, log, self := e.Config(), zap.NewNop(), wire.ParseIdentity(e.Identity())
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	t := &testTransport{endpoint: core.Endpoint{Port: listener.Addr().(*net.TCPAddr).Port, ProtoVersion: 2, Hello: wire.HelloVersion}}
	var local *net.UnixListener
	sameHost := config.SameHost && !config.ForceTCP
	if sameHost {
		if local, t.endpoint.SameHostSocket, err = samehost.Listen(); err != nil {
			return nil, err
		}
	}
	allow, err := address.ParseNetworks(config.Allow)
	if err != nil {
		return nil, err
	}
	t.Client = New(Options{Allow: allow, Config: config, Log: log, Memory: e.Memory(), Identity: self, Port: t.endpoint.Port,
		SameHost: sameHost, Security: e.Security(), Processors: testProcessors, Limiter: testLimiter, Descriptors: testDescriptors,
		MaxRecords: testMaxRecords, StuckTimeout: testStuck})
	t.server = server.New(log, e.Memory(), listener, local, server.Options{Identity: self, MaxSessions: config.MaxSessions,
		FirstRequest: config.FirstRequestTimeout, ProgressTimeout: config.ProgressTimeout, Polling: config.Polling, Security: e.Security(), Processors: testProcessors, Limiter: testLimiter})
	return t, nil
}

func (t *testTransport) Endpoint() core.Endpoint         { return t.endpoint }
func (t *testTransport) Evict(r *core.Region)            { t.server.Evict(r) }
func (t *testTransport) EvictOffer(o *core.Offer)        { t.server.EvictOffer(o) }
func (t *testTransport) Holders(r *core.Region) []string { return t.server.Holders(r) }
func (t *testTransport) Stats() metrics.Transport {
	s := metrics.Transport{Initiator: t.States()}
	s.Target, s.Sessions = t.server.Stats()
	return s
}
func (t *testTransport) Links() []core.Link { return append(t.Client.Links(), t.server.Links()...) }

func (t *testTransport) Close() error {
	t.Refuse()
	t.End()
	t.server.Close()
	t.Wait()
	return nil
}

func newEngine(t testing.TB, change ...func(*core.Config)) *core.Engine {
	t.Helper()
	return tcptest.Engine(t, openForTest, change...)
}

// clientSameHost are two engines on one host; see tcptest.SameHost.
func sameHost(t testing.TB, length int, change ...func(*core.Config)) (target, e *core.Engine, memory, local []byte, id core.SegmentID) {
	t.Helper()
	return tcptest.SameHost(t, openForTest, length, change...)
}

func transportOf(t testing.TB, e *core.Engine) *testTransport {
	t.Helper()
	installed, err := e.Install("tcp", nil)
	require.NoError(t, err)
	return installed.(*testTransport)
}

// clientSocketOf is the socket of a connection, and closed at the end of the test.
func socketOf(t testing.TB, conn sockio.Conn) *sockio.Socket {
	t.Helper()
	s, err := sockio.New(conn, testProcessors)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// onlyPeer is the one peer that the engine has had to do with.
func onlyPeer(t testing.TB, e *core.Engine) *peer {
	t.Helper()
	all := transportOf(t, e).allPeers()
	require.Len(t, all, 1)
	return all[0]
}
