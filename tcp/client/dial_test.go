package client

import (
	"net"
	"net/netip"
	"strconv"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/metadata"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/server"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// unknownHost is a name that no resolver knows (RFC 2606).
const unknownHost = "decode-0.invalid"

// A peer may know itself by a name or an address that means nothing here: its pod's, or one behind NAT.
func TestTheDataPortIsAlsoLookedForWhereTheHandshakeWasAnswered(t *testing.T) {
	for _, host := range []string{unknownHost, "0.0.0.0", "::1", "localhost"} {
		t.Run(host, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
			p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
			p.Mu.Lock()
			p.Shown.DataHost = host
			p.Mu.Unlock()
			e := newEngine(t)
			id := tcptest.OpenSegment(t, e, p.Name)
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
			require.Equal(t, "127.0.0.1", *onlyPeer(t, e).lastHost.Load(), "the next connections begin with it")
		})
	}
}

func TestAnEngineIsReachedByAnotherAddressThanItsOwnName(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	config := core.DefaultConfig()
	config.SameHost = false
	owner, err := core.New(core.Options{Name: unknownHost, Metadata: metadata.P2P, Config: config, Log: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = owner.Close() })
	_, err = owner.Install("tcp", openForTest)
	require.NoError(t, err)
	require.NoError(t, owner.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
	e := newEngine(t)
	id := tcptest.OpenSegment(t, e, net.JoinHostPort("127.0.0.1", strconv.Itoa(owner.HandshakePort())))
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
}

// The address that the descriptor names is another engine's, which is not sent a byte.
func TestAnEngineAtTheNamedAddressThatIsAnotherOneIsPassedOver(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	owner := newEngine(t)
	require.NoError(t, owner.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
	port := owner.Descriptor().DataPort
	other, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9), Port: port})
	require.NoError(t, err)
	another := server.New(zap.NewNop(), newEngine(t).Memory(), other, nil, server.Options{
		Identity: wire.Identity{9}, MaxSessions: 1, FirstRequest: tcptest.Patience, ProgressTimeout: tcptest.Patience,
		Processors: testProcessors, Limiter: testLimiter,
	})
	t.Cleanup(another.Close)
	shown := owner.Descriptor()
	shown.DataHost = "127.0.0.9"
	handshakes, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	server := metadata.Serve(handshakes, metadata.Handlers{
		Descriptor: func() *metadata.Descriptor { return shown },
		Notify:     func(metadata.Notification, netip.Addr) error { return nil },
	}, metadata.HandshakeOptions{})
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	e := newEngine(t, tcptest.WithoutPool)
	id := tcptest.OpenSegment(t, e, handshakes.Addr().String())
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
	onlyPeer(t, e).lastHost.Store(&shown.DataHost) // the next connection begins with it
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
	require.Equal(t, "127.0.0.1", *onlyPeer(t, e).lastHost.Load())
	require.EqualValues(t, 1, len(another.Links()), "it was asked who it is")
	require.Zero(t, another.Links()[0].BytesIn)
}

func TestAnErrorNamesEveryPlaceWhereTheDataPortWasLookedFor(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
	p.Mu.Lock()
	p.Shown.DataHost = unknownHost
	p.Mu.Unlock()
	e := newEngine(t)
	id := tcptest.OpenSegment(t, e, p.Name)
	p.LeavePort()
	b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far))
	tcptest.FailsOnly(t, b, 0)
	require.ErrorContains(t, b.Err(), unknownHost)
	require.ErrorContains(t, b.Err(), "127.0.0.1:"+strconv.Itoa(p.Shown.DataPort))
}
