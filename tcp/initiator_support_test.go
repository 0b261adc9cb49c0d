package tcp

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// scripted is a peer whose handshake is real and whose data port does what the test says.
type scripted struct {
	t    testing.TB
	name string // for OpenSegment

	running sync.WaitGroup
	mu      sync.Mutex
	shown   metadata.Descriptor
	fetches int
	port    *net.TCPListener // nil while there is none
	left    chan struct{}    // closed when nobody accepts on the port any more
	conns   []*net.TCPConn   // all that were accepted
	headers []wire.Header    // all that were received
	memory  [][]byte
}

// script serves a connection, the n-th from 0. The connection is closed when it returns.
type script func(c *visitor, n int)

// perform starts a peer that shows the memory and the protocol version.
func perform(t testing.TB, version int, s script, memory ...[]byte) *scripted {
	t.Helper()
	p := &scripted{t: t, memory: memory}
	p.show(version, memory...)
	handshakes, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	p.name = handshakes.Addr().String()
	server := metadata.Serve(handshakes, metadata.Handlers{Descriptor: p.descriptor,
		Notify: func(metadata.Notification) bool { return true }}, metadata.HandshakeOptions{})
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		p.leavePort()
		p.hangUp()
		p.running.Wait()
	})
	p.enterPort(s)
	return p
}

// show sets the descriptor's version and buffers.
func (p *scripted) show(version int, memory ...[]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown.Name, p.shown.Protocol, p.shown.DataHost, p.shown.ProtoVersion = p.name, "tcp", "127.0.0.1", version
	p.shown.Buffers = nil
	for _, b := range memory {
		p.shown.Buffers = append(p.shown.Buffers, metadata.Buffer{Name: "cpu:0", Addr: uint64(sockio.AddressOf(b)), Length: uint64(len(b))})
	}
}

func (p *scripted) descriptor() *metadata.Descriptor {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fetches++
	d := p.shown
	return &d
}

// enterPort opens a data port and shows it.
func (p *scripted) enterPort(s script) {
	p.t.Helper()
	port, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(p.t, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	left := make(chan struct{})
	p.port, p.left = port, left
	p.shown.DataPort = port.Addr().(*net.TCPAddr).Port
	p.running.Go(func() {
		defer close(left)
		p.accept(port, s)
	})
}

// leavePort closes the data port. The kernel takes connections for it as long as somebody accepts.
func (p *scripted) leavePort() {
	p.mu.Lock()
	port, left := p.port, p.left
	p.port = nil
	p.mu.Unlock()
	if port != nil {
		_ = port.Close()
		<-left
	}
}

func (p *scripted) accept(port *net.TCPListener, s script) {
	for {
		conn, err := port.AcceptTCP()
		if err != nil {
			return
		}
		p.mu.Lock()
		n := len(p.conns)
		p.conns = append(p.conns, conn)
		p.mu.Unlock()
		p.running.Go(func() {
			s(&visitor{peer: p, conn: conn}, n)
			_ = conn.Close()
		})
	}
}

// hangUp closes every connection.
func (p *scripted) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
}

func (p *scripted) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

func (p *scripted) fetched() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fetches
}

func (p *scripted) requests() []wire.Header {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.headers)
}

// visitor is the peer's end of a data connection. Its methods report whether the connection is still good.
type visitor struct {
	peer *scripted
	conn *net.TCPConn
}

func (v *visitor) header(h *wire.Header) bool {
	var b [wire.HeaderSize]byte
	if _, err := io.ReadFull(v.conn, b[:]); err != nil {
		return false
	}
	var err error
	if *h, err = wire.ParseHeader(b[:], false); err != nil {
		return false
	}
	v.peer.mu.Lock()
	v.peer.headers = append(v.peer.headers, *h)
	v.peer.mu.Unlock()
	return true
}

// holds reports whether the peer's memory, shown or not, has the range.
func (v *visitor) holds(h wire.Header) bool {
	return slices.ContainsFunc(v.peer.memory, func(b []byte) bool {
		return within(&core.Region{Range: core.Range{Addr: sockio.AddressOf(b), Length: uint64(len(b))}}, h)
	})
}

func (v *visitor) send(b []byte) bool {
	_, err := v.conn.Write(b)
	return err == nil
}

func (v *visitor) status(code uint32) bool {
	var b [wire.StatusSize]byte
	wire.PutStatus(b[:], code)
	return v.send(b[:])
}

// skip reads n bytes.
func (v *visitor) skip(n int64) bool {
	_, err := io.CopyN(io.Discard, v.conn, n)
	return err == nil
}

// reject answers with a rejection, and closes when the initiator has.
func (v *visitor) reject() {
	_ = v.status(wire.StatusRejected)
	_ = v.conn.CloseWrite()
	_, _ = io.Copy(io.Discard, v.conn)
}

// obey does what a request asks, and answers it.
func (v *visitor) obey(h wire.Header) bool {
	if !v.holds(h) {
		if h.V2 {
			v.reject()
		}
		return false
	}
	place := core.MemoryAt(uintptr(h.Addr), h.Length)
	if h.Op == wire.Write {
		_, err := io.ReadFull(v.conn, place)
		return err == nil && (!h.V2 || v.status(wire.StatusOK))
	}
	return (!h.V2 || v.status(wire.StatusOK)) && v.send(place)
}

// serve is a script of good manners.
func serveWell(v *visitor, _ int) {
	var h wire.Header
	for v.header(&h) && v.obey(h) {
	}
}

// atFirst plays one script on the first n connections, and serves well on the others.
func atFirst(n int, s script) script {
	return func(v *visitor, i int) {
		if i < n {
			s(v, i)
		} else {
			serveWell(v, i)
		}
	}
}

// waitForEnd returns when the initiator has closed the connection.
func (v *visitor) waitForEnd() { _, _ = io.Copy(io.Discard, v.conn) }

func (v *visitor) reset() {
	_ = v.conn.SetLinger(0)
	_ = v.conn.Close()
}

func open(t testing.TB, e *core.Engine, name string) core.SegmentID {
	t.Helper()
	id, err := e.OpenSegment(name)
	require.NoError(t, err)
	return id
}

// ask is a request that moves all of local.
func ask(op core.Opcode, local []byte, id core.SegmentID, remote []byte) core.Request {
	return core.Request{Opcode: op, Local: sockio.AddressOf(local), Target: id, Remote: uint64(sockio.AddressOf(remote)), Length: uint64(len(local))}
}

// scattered are requests for n blocks of a size, none of which is adjacent to another.
func scattered(op core.Opcode, local []byte, id core.SegmentID, remote []byte, n, size int) []core.Request {
	reqs := make([]core.Request, n)
	for i := range reqs {
		at := i * (size + 1)
		reqs[i] = ask(op, local[at:at+size], id, remote[at:at+size])
	}
	return reqs
}

func submit(t testing.TB, e *core.Engine, reqs ...core.Request) *core.Batch {
	t.Helper()
	b, err := e.AllocateBatch(len(reqs))
	require.NoError(t, err)
	require.NoError(t, e.Submit(b, reqs, nil))
	return b
}

// states are the tasks' final states.
func states(t testing.TB, b *core.Batch) []core.State {
	t.Helper()
	wait(t, b)
	all := make([]core.State, b.Summary().Tasks)
	for i := range all {
		var err error
		all[i], _, err = b.Status(i)
		require.NoError(t, err)
	}
	return all
}

// completes checks that all of a batch does.
func completes(t testing.TB, b *core.Batch) {
	t.Helper()
	wait(t, b)
	require.NoError(t, b.Err())
	require.Equal(t, b.Summary().Tasks, b.Summary().Completed)
}

// failsOnly checks that the tasks with these numbers fail and the others complete.
func failsOnly(t testing.TB, b *core.Batch, failing ...int) {
	t.Helper()
	for i, state := range states(t, b) {
		if slices.Contains(failing, i) {
			require.Equal(t, core.Failed, state, "task %d", i)
		} else {
			require.Equal(t, core.Completed, state, "task %d; first error: %v", i, b.Err())
		}
	}
}

// oneLane leaves the initiator no choice of connections.
func oneLane(c *core.Config) { c.LanesPerPeer = 1 }

// impatient makes the initiator give up soon.
func impatient(c *core.Config) {
	c.ProgressTimeout, c.StatusTimeout = 200*time.Millisecond, 200*time.Millisecond
}

func fewRetries(c *core.Config)  { c.RetryCount = 2 }
func speakV1(c *core.Config)     { c.ForceProtoV1 = true }
func withoutPool(c *core.Config) { c.ConnectionPool = false }

// ways are the three ways to reach a peer.
var ways = []struct {
	name   string
	config func(*core.Config)
}{
	{"lanes", func(*core.Config) {}},
	{"a connection per request", withoutPool},
	{"version 1", speakV1},
}

// blockedPort is a data port that lets nobody connect, and refuses nobody either.
func blockedPort(t testing.TB) (port int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	bound, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	addr := net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: bound.(*syscall.SockaddrInet4).Port}
	for { // until the backlog is full
		conn, err := net.DialTimeout("tcp", addr.String(), 100*time.Millisecond)
		if err != nil {
			var timeout net.Error
			require.True(t, errors.As(err, &timeout) && timeout.Timeout(), "%v", err)
			return addr.Port
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}

// transportOf is the transport of an engine made by engine.
func transportOf(t testing.TB, e *core.Engine) *Transport {
	t.Helper()
	installed, err := e.Install("tcp", nil)
	require.NoError(t, err)
	return installed.(*Transport)
}

// onlyPeer is the one peer that the engine has had to do with.
func onlyPeer(t testing.TB, e *core.Engine) *peer {
	t.Helper()
	all := transportOf(t, e).allPeers()
	require.Len(t, all, 1)
	return all[0]
}
