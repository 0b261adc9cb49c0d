package tcp

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served is a fake of the registry: a fixed set of regions.
type served struct {
	mu      sync.Mutex
	regions []*core.Region
	pinned  int // how often
	epoch   atomic.Uint64
}

func (s *served) Epoch() *atomic.Uint64 { return &s.epoch }

func (s *served) add(b []byte, remote bool) *core.Region {
	return s.addRange(core.Range{Addr: sockio.AddressOf(b), Length: uint64(len(b))}, remote, nil)
}

func (s *served) addRange(at core.Range, remote bool, on *staging.Device) *core.Region {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &core.Region{Range: at, Remote: remote, Device: on}
	s.regions = append(s.regions, r)
	return r
}

func (s *served) PinRemote(addr, length uint64) (*core.Region, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.regions {
		if r.Remote && within(r, wire.Header{Addr: addr, Length: length}) {
			s.pinned++
			return r, nil
		}
	}
	return nil, fmt.Errorf("address range %#x+%d is not registered", addr, length)
}

type harness struct {
	t      testing.TB
	target *target
	memory *served
	logs   *observer.ObservedLogs

	neighbours string // name of the socket for them
	numbers    atomic.Uint64
}

// serve starts a target that serves the given memory and ends with the test.
func serve(t testing.TB, o targetOptions, memory ...[]byte) *harness {
	t.Helper()
	if o.maxSessions == 0 {
		o.maxSessions = 64
	}
	if o.progressTimeout == 0 {
		o.progressTimeout = time.Minute
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	observed, logs := observer.New(zapcore.DebugLevel)
	local, name, err := samehost.Listen()
	require.NoError(t, err)
	h := &harness{t: t, memory: &served{}, logs: logs, neighbours: name}
	for _, b := range memory {
		h.memory.add(b, true)
	}
	h.target = newTarget(zap.New(observed), h.memory, listener, local, o)
	t.Cleanup(h.target.close)
	return h
}

func (h *harness) sessions() int {
	h.target.mu.Lock()
	defer h.target.mu.Unlock()
	return len(h.target.sessions)
}

func (h *harness) waitForSessions(n int) {
	h.t.Helper()
	require.Eventually(h.t, func() bool { return h.sessions() == n }, tcptest.Patience, time.Millisecond)
}

// only is the session of the one connection there is.
func (h *harness) only() *session {
	h.t.Helper()
	h.waitForSessions(1)
	h.target.mu.Lock()
	defer h.target.mu.Unlock()
	for s := range h.target.sessions {
		return s
	}
	return nil
}

func (h *harness) waitForLog(message string) observer.LoggedEntry {
	h.t.Helper()
	var found []observer.LoggedEntry
	require.Eventually(h.t, func() bool {
		found = h.logs.FilterMessage(message).All()
		return len(found) > 0
	}, tcptest.Patience, time.Millisecond, "no log line %q in %v", message, h.logs.All())
	return found[0]
}

type clientConn interface {
	net.Conn
	CloseWrite() error
}

// client is a peer made of plain socket calls.
type client struct {
	t    testing.TB
	conn clientConn
}

func (h *harness) dial() *client {
	h.t.Helper()
	conn, err := net.DialTCP("tcp", nil, h.target.listener.Addr().(*net.TCPAddr))
	require.NoError(h.t, err)
	return h.connected(conn)
}

// dialNeighbour makes the test process a neighbour of itself, which may be copied from.
func (h *harness) dialNeighbour() *client {
	c, _ := h.dialWithPermit()
	return c
}

// dialSocket connects as a process of this host that has said nothing yet.
func (h *harness) dialSocket() *client {
	h.t.Helper()
	conn, err := net.DialUnix("unix", nil, samehost.Address(h.neighbours))
	require.NoError(h.t, err)
	return h.connected(conn)
}

func (h *harness) dialWithPermit() (*client, *samehost.Permit) {
	h.t.Helper()
	c := h.dialSocket()
	p, file, err := samehost.NewPermit()
	require.NoError(h.t, err)
	defer sockio.CloseFile(file)
	h.t.Cleanup(func() { require.NoError(h.t, p.Close()) })
	hi := wire.Hello{Origin: wire.Identity{1}, Number: h.numbers.Add(1), PermitAt: uint64(p.At)}
	answer, err := exchangeHello(c.conn.(*net.UnixConn), hi, file)
	require.NoError(h.t, err)
	require.EqualValues(h.t, wire.AnswerPermit, answer.Flags)
	require.EqualValues(h.t, wire.StatusOK, answer.Code)
	return c, p
}

func (h *harness) connected(conn clientConn) *client {
	h.t.Helper()
	require.NoError(h.t, conn.SetDeadline(time.Now().Add(tcptest.Patience)))
	h.t.Cleanup(func() { _ = conn.Close() })
	return &client{h.t, conn}
}

func request(op core.Opcode, v2 bool, addr uintptr, length uint64) []byte {
	b := make([]byte, wire.HeaderSize)
	wire.PutHeader(b, opcodeOf(op), uint64(addr), length, v2)
	return b
}

func writeV1(addr uintptr, payload []byte) []byte {
	return append(request(core.Write, false, addr, uint64(len(payload))), payload...)
}

func writeV2(addr uintptr, payload []byte) []byte {
	return append(request(core.Write, true, addr, uint64(len(payload))), payload...)
}

func readV1(b []byte) []byte { return request(core.Read, false, sockio.AddressOf(b), uint64(len(b))) }
func readV2(b []byte) []byte { return request(core.Read, true, sockio.AddressOf(b), uint64(len(b))) }

func (c *client) send(parts ...[]byte) {
	c.t.Helper()
	var all []byte
	for _, b := range parts {
		all = append(all, b...)
	}
	_, err := c.conn.Write(all)
	require.NoError(c.t, err)
}

func (c *client) expect(want []byte) {
	c.t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(c.conn, got)
	require.NoError(c.t, err)
	require.Equal(c.t, want, got)
}

func (c *client) expectStatus(want uint32) {
	c.t.Helper()
	b := make([]byte, wire.StatusSize)
	wire.PutStatus(b, want)
	c.expect(b)
}

func (c *client) expectEnd() {
	c.t.Helper()
	n, err := c.conn.Read(make([]byte, 1))
	require.Equal(c.t, io.EOF, err, "%d bytes", n)
}

func (c *client) expectReset() {
	c.t.Helper()
	n, err := c.conn.Read(make([]byte, 1))
	require.ErrorIs(c.t, err, syscall.ECONNRESET, "%d bytes", n)
}

// socketOf is the socket of a connection, which the test closes.
func socketOf(t testing.TB, conn sockio.Conn) *sockio.Socket {
	t.Helper()
	s, err := sockio.New(conn, processors)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}
