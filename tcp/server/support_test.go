package server

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// served is a fake of the registry: a fixed set of regions.
type served struct {
	mu      sync.Mutex
	regions []*core.Region
	pinned  int // how often
	lookups int // by PinRemote
	epoch   atomic.Uint64
}

func (s *served) Epoch() *atomic.Uint64 { return &s.epoch }

func (s *served) add(b []byte, remote bool) *core.Region {
	access := core.NoAccess
	if remote {
		access = core.FullAccess
	}
	return s.addFor(b, access, nil)
}

// addFor is add for memory of a device, or nil, that peers may do this with.
func (s *served) addFor(b []byte, access core.Access, on *staging.Device) *core.Region {
	return s.addRange(core.Range{Addr: hostmem.AddressOf(b), Length: uint64(len(b))}, access, on)
}

func (s *served) addRange(at core.Range, access core.Access, on *staging.Device) *core.Region {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &core.Region{Range: at, Access: access, Device: on}
	s.regions = append(s.regions, r)
	return r
}

func (s *served) UseOffer(layout.Key, uint64, core.Opcode, *hostmem.Strided) (*core.Offer, error) {
	return nil, core.ErrRevoked
}

func (s *served) PinOffered(uint64, uint64) (*core.Region, error) { return nil, core.ErrRevoked }

func (s *served) PinRemote(addr, length uint64, op core.Opcode) (*core.Region, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookups++
	for _, r := range s.regions {
		if r.Access == core.NoAccess || !within(r, wire.Header{Addr: addr, Length: length}) {
			continue
		}
		if !r.Access.Allows(op) {
			return nil, fmt.Errorf("address range %#x+%d is registered, but %w %s it", addr, length, core.ErrForbidden, op.Verb())
		}
		s.pinned++
		return r, nil
	}
	return nil, fmt.Errorf("address range %#x+%d is not registered", addr, length)
}

type harness struct {
	t      testing.TB
	server *Server
	memory *served
	logs   *observer.ObservedLogs

	localName string // name of the socket for them
	numbers   atomic.Uint64
}

// serve starts a target that serves the given memory and ends with the test.
func serve(t testing.TB, o Options, memory ...[]byte) *harness {
	t.Helper()
	if o.MaxSessions == 0 {
		o.MaxSessions = 64
	}
	if o.FirstRequest == 0 {
		o.FirstRequest = time.Minute
	}
	if o.ProgressTimeout == 0 {
		o.ProgressTimeout = time.Minute
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	observed, logs := observer.New(zapcore.DebugLevel)
	local, name, err := samehost.Listen()
	require.NoError(t, err)
	h := &harness{t: t, memory: &served{}, logs: logs, localName: name}
	for _, b := range memory {
		h.memory.add(b, true)
	}
	if o.Processors == nil {
		o.Processors, o.Limiter = sockio.NewProcessors(runtime.GOMAXPROCS(0)), samehost.NewCopyLimiter(1, nil)
	}
	h.server = New(zap.New(observed), h.memory, listener, local, o)
	t.Cleanup(h.server.Close)
	return h
}

func (h *harness) sessions() int {
	h.server.mu.Lock()
	defer h.server.mu.Unlock()
	return len(h.server.sessions)
}

func (h *harness) waitForSessions(n int) {
	h.t.Helper()
	require.Eventually(h.t, func() bool { return h.sessions() == n }, tcptest.Patience, time.Millisecond)
}

// only is the session of the one connection there is.
func (h *harness) only() *session {
	h.t.Helper()
	h.waitForSessions(1)
	h.server.mu.Lock()
	defer h.server.mu.Unlock()
	for s := range h.server.sessions {
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

// knows reports whether there is a session of a connection of the zero origin.
func (h *harness) knows(number uint64) bool {
	h.server.mu.Lock()
	defer h.server.mu.Unlock()
	return h.server.numbered[connectionKey{number: number}] != nil
}

// occupy has a connection stay in the middle of a request, so that it does not give way to another one.
func (h *harness) occupy(c *tcptest.Client, memory []byte) {
	h.t.Helper()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	c.ExpectStatus(wire.StatusOK)
	c.Send(tcptest.Request(core.Write, true, hostmem.AddressOf(memory), uint64(len(memory))))
	require.Eventually(h.t, func() bool { return h.busy(c) }, tcptest.Patience, time.Millisecond)
}

// busy reports whether the session of a connection is in the middle of a request.
func (h *harness) busy(c *tcptest.Client) bool {
	h.server.mu.Lock()
	defer h.server.mu.Unlock()
	for s := range h.server.sessions {
		if s.waiting.Load() && s.conn.Remote.String() == c.Conn.LocalAddr().String() {
			return true
		}
	}
	return false
}

func (h *harness) dial() *tcptest.Client {
	h.t.Helper()
	conn, err := net.DialTCP("tcp", nil, h.server.listener.Addr().(*net.TCPAddr))
	require.NoError(h.t, err)
	return tcptest.NewClient(h.t, conn)
}

// dialSameHost makes the test process a peer on its own host, which may be copied from.
func (h *harness) dialSameHost() *tcptest.Client {
	c, _ := h.dialWithPermit()
	return c
}

// dialSocket connects as a process of this host that has said nothing yet.
func (h *harness) dialSocket() *tcptest.Client {
	h.t.Helper()
	conn, err := net.DialUnix("unix", nil, samehost.Address(h.localName))
	require.NoError(h.t, err)
	return tcptest.NewClient(h.t, conn)
}

func (h *harness) dialWithPermit() (*tcptest.Client, *samehost.Permit) {
	h.t.Helper()
	c := h.dialSocket()
	p, file, err := samehost.NewPermit()
	require.NoError(h.t, err)
	defer sockio.CloseFile(file)
	h.t.Cleanup(func() { require.NoError(h.t, p.Close()) })
	hi := wire.Hello{Origin: wire.Identity{1}, Number: h.numbers.Add(1), PermitAt: uint64(p.At)}
	_, _, err = c.Conn.(*net.UnixConn).WriteMsgUnix(hi.Encode(), unix.UnixRights(file), nil)
	require.NoError(h.t, err)
	answer, err := wire.ReadAnswer(c.Conn)
	require.NoError(h.t, err)
	require.EqualValues(h.t, wire.AnswerPermit|wire.AnswerStrided, answer.Flags)
	require.EqualValues(h.t, wire.StatusOK, answer.Code)
	return c, p
}

// serve starts a target that serves device memory.
func serveDevice(a *tcptest.Accelerator, o Options, memory ...[]byte) *harness {
	a.T.Helper()
	h := serve(a.T, o)
	for _, b := range memory {
		h.memory.addDevice(b, a.Staging)
	}
	return h
}

func (s *served) addDevice(b []byte, on *staging.Device) *core.Region {
	return s.addFor(b, core.FullAccess, on)
}

// sendInParts sends a stream in parts of random lengths and ends it. It returns all that the server answers meanwhile.
func sendInParts(t testing.TB, c *tcptest.Client, stream []byte, random *rand.Rand) []byte {
	t.Helper()
	go func() {
		for len(stream) > 0 {
			n, err := c.Conn.Write(stream[:min(len(stream), 1+random.IntN(200000))])
			if !assert.NoError(t, err) {
				return
			}
			stream = stream[n:]
		}
		assert.NoError(t, c.Conn.CloseWrite())
	}()
	got, err := io.ReadAll(c.Conn)
	require.NoError(t, err)
	return got
}
