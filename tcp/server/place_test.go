package server

import (
	"fmt"
	"net"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// dialFrom connects from an address of this machine.
func (h *harness) dialFrom(host string) *tcptest.Client {
	h.t.Helper()
	from := &net.TCPAddr{IP: net.ParseIP(host)}
	conn, err := net.DialTCP("tcp", from, h.server.listener.Addr().(*net.TCPAddr))
	require.NoError(h.t, err)
	return tcptest.NewClient(h.t, conn)
}

// greeted is a connection of a kvferry engine that has made a request.
func (h *harness) greeted(memory []byte) *tcptest.Client {
	h.t.Helper()
	c := h.dial()
	require.EqualValues(h.t, wire.StatusOK, c.Greet(wire.Hello{Origin: wire.Identity{1}, Number: h.numbers.Add(1)}).Code)
	requireServed(c, memory)
	return c
}

func requireServed(c *tcptest.Client, memory []byte) {
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	c.ExpectStatus(wire.StatusOK)
}

// waitForRest returns when so many sessions wait for the next request.
func (h *harness) waitForRest(n int) {
	h.t.Helper()
	require.Eventually(h.t, func() bool {
		h.server.mu.Lock()
		defer h.server.mu.Unlock()
		idle := 0
		for s := range h.server.sessions {
			if !s.silent.Load() && s.conn.AwaitsBytes() && !s.waiting.Load() {
				idle++
			}
		}
		return idle == n
	}, tcptest.Patience, time.Millisecond)
}

func TestAConnectionWithoutAValidRequestEnds(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{FirstRequest: 200 * time.Millisecond}, memory)
	silent, slow := h.dial(), h.dial()
	slow.Send(tcptest.ReadV2(memory)[:3])
	for _, c := range []*tcptest.Client{silent, slow} {
		_, err := c.Conn.Read(make([]byte, 1))
		require.Error(t, err)
	}
	require.Contains(t, h.waitForLog("data connection lost").ContextMap()["error"], "KVFERRY_FIRST_REQUEST_TIMEOUT_SEC")
}

func TestAConnectionGetsMemoryToReadAheadWithItsFirstValidRequest(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	here := wire.Hello{Origin: wire.Identity{1}, Number: 1}
	elsewhere := wire.Hello{Origin: wire.Identity{1}, Number: 1, Target: wire.Identity{9}}
	for name, c := range map[string]struct {
		first []byte
		grows bool
	}{
		"a request":                     {tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")), true},
		"a hello":                       {here.Encode(), true},
		"a hello for another engine":    {elsewhere.Encode(), false},
		"a request for other memory":    {tcptest.Request(core.Read, true, 64, 64), false},
		"the beginning of a long hello": {here.Encode()[:30], false},
	} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, Options{}, memory)
			client := h.dial()
			s := h.only()
			client.Send(c.first)
			_ = client.Conn.CloseWrite() // fails where the session has ended it already
			<-s.over
			want := firstAhead
			if c.grows {
				want = readAhead
			}
			require.Len(t, s.ahead, want)
		})
	}
}

func TestAConnectionThatHasMadeARequestMayBeIdle(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	for name, dial := range map[string]func(*harness) *tcptest.Client{
		"an engine": func(h *harness) *tcptest.Client { return h.greeted(memory) },
		"Mooncake":  func(h *harness) *tcptest.Client { c := h.dial(); requireServed(c, memory); return c },
	} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, Options{}, memory)
			c := dial(h)
			require.False(t, h.only().silent.Load())
			requireServed(c, memory)
		})
	}
}

func TestSilentConnectionsKeepNobodyOut(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{MaxSessions: 4}, memory)
	for range 20 {
		h.dial()
	}
	for range 3 {
		requireServed(h.dial(), memory)
		h.greeted(memory)
	}
	h.dialSocket().Send(nil)
	requireServed(h.dialSocket(), memory)
}

func TestIdleConnectionsOfEnginesGiveWayInGoodOrderBeforeThoseOfMooncake(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{MaxSessions: 3}, memory)
	mooncake := h.dial()
	requireServed(mooncake, memory)
	engine := h.greeted(memory)
	h.occupy(h.dial(), memory)
	h.waitForRest(2)
	newcomer := h.dial()
	requireServed(newcomer, memory)
	engine.ExpectEnd()
	requireServed(mooncake, memory)
}

func TestPeersOfOneAddressLeavePlacesForOthers(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{MaxSessions: 8}, memory)
	for range 6 { // all that one address may have
		h.occupy(h.dial(), memory)
	}
	waits := h.dial()
	waits.Send(tcptest.ReadV2(memory[:1]))
	h.waitForLog("all sessions are in use; more data connections wait until one ends")
	h.occupy(h.dialFrom("127.0.0.2"), memory)
	h.occupy(h.dialFrom("127.0.0.3"), memory)
	waits.ExpectSilence()
}

func TestConnectionsThatWaitAreLimitedFairly(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{MaxSessions: 4}, memory)
	for range 3 { // all that one address may have
		h.occupy(h.dial(), memory)
	}
	first := h.dialFrom("127.0.0.3")
	h.occupy(first, memory)
	for range 2 * maxWaiting {
		h.dial()
	}
	other := h.dialFrom("127.0.0.2")
	other.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	h.waitForLog("refused a data connection")
	require.NoError(t, first.Conn.Close())
	other.ExpectStatus(wire.StatusOK)
}

func TestSessionsTakeNoMoreDescriptorsThanTheyMay(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	const most = 2*sockio.PerConnection + 1
	allowed := sockio.NewDescriptors(most)
	h := serve(t, Options{Descriptors: allowed}, memory)
	for range 5 {
		requireServed(h.dial(), memory)
		require.LessOrEqual(t, h.sessions(), 2)
	}
	h.server.Close()
	require.True(t, allowed.Take(most), "all of them were given back")
}

func TestIdleConnectionsWithOneEngineLeaveDescriptorsForTheOthersOfTheProcess(t *testing.T) {
	const most = 4
	allowed := sockio.NewDescriptors(most * sockio.PerConnection)
	memory := tcptest.Mapped(t, 4096)
	full, empty := serve(t, Options{Descriptors: allowed}, memory), serve(t, Options{Descriptors: allowed}, memory)
	for i := range most {
		requireServed(full.dialFrom(fmt.Sprintf("127.0.0.%d", 2+i)), memory)
	}
	full.waitForRest(most)
	requireServed(empty.dial(), memory)
	full.waitForSessions(most - 1)
	for range 2 * most { // each finds a place, whichever engine it is with
		requireServed(full.dial(), memory)
		requireServed(empty.dial(), memory)
	}
	for i := range 2 * most { // silent ones of a stranger, too
		full.dialFrom("127.0.0.99")
		requireServed(empty.dialFrom(fmt.Sprintf("127.0.1.%d", i+1)), memory)
	}
	full.server.Close()
	empty.server.Close()
	require.True(t, allowed.Take(most*sockio.PerConnection), "all of them were given back")
}

func TestIdleConnectionsOnOneHostLeaveDescriptorsForOthers(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{Descriptors: sockio.NewDescriptors(12)}, memory)
	for range 3 {
		requireServed(h.dialSameHost(), memory)
	}
	h.waitForRest(3)
	requireServed(h.dial(), memory)
}
