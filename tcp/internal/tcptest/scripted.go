package tcptest

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// scripted is a peer whose handshake is real and whose data port does what the test says.
type Scripted struct {
	T    testing.TB
	Name string // for OpenSegment

	running sync.WaitGroup
	Mu      sync.Mutex
	Shown   metadata.Descriptor
	fetches int
	Port    *net.TCPListener // nil while there is none
	left    chan struct{}    // closed when nobody accepts on the port any more
	conns   []*net.TCPConn   // all that were accepted
	headers []wire.Header    // all that were received
	Memory  [][]byte
}

// script serves a connection, the n-th from 0. The connection is closed when it returns.
type Script func(c *Visitor, n int)

// perform starts a peer that shows the memory and the protocol version.
func Perform(t testing.TB, version int, s Script, memory ...[]byte) *Scripted {
	t.Helper()
	p := &Scripted{T: t, Memory: memory}
	p.Show(version, memory...)
	handshakes, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	p.Name = handshakes.Addr().String()
	server := metadata.Serve(handshakes, metadata.Handlers{Descriptor: p.descriptor,
		Notify: func(metadata.Notification) bool { return true }}, metadata.HandshakeOptions{})
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		p.LeavePort()
		p.HangUp()
		p.running.Wait()
	})
	p.EnterPort(s)
	return p
}

// show sets the descriptor's version and buffers.
func (p *Scripted) Show(version int, memory ...[]byte) {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	p.Shown.Name, p.Shown.Protocol, p.Shown.DataHost, p.Shown.ProtoVersion = p.Name, "tcp", "127.0.0.1", version
	p.Shown.Buffers = nil
	for _, b := range memory {
		p.Shown.Buffers = append(p.Shown.Buffers, metadata.Buffer{Name: "cpu:0", Addr: uint64(AddressOf(b)), Length: uint64(len(b))})
	}
}

func (p *Scripted) descriptor() *metadata.Descriptor {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	p.fetches++
	d := p.Shown
	return &d
}

// enterPort opens a data port and shows it.
func (p *Scripted) EnterPort(s Script) {
	p.T.Helper()
	port, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(p.T, err)
	p.Mu.Lock()
	defer p.Mu.Unlock()
	left := make(chan struct{})
	p.Port, p.left = port, left
	p.Shown.DataPort = port.Addr().(*net.TCPAddr).Port
	p.running.Go(func() {
		defer close(left)
		p.accept(port, s)
	})
}

// leavePort closes the data port. The kernel takes connections for it as long as somebody accepts.
func (p *Scripted) LeavePort() {
	p.Mu.Lock()
	port, left := p.Port, p.left
	p.Port = nil
	p.Mu.Unlock()
	if port != nil {
		_ = port.Close()
		<-left
	}
}

func (p *Scripted) accept(port *net.TCPListener, s Script) {
	for {
		conn, err := port.AcceptTCP()
		if err != nil {
			return
		}
		p.Mu.Lock()
		n := len(p.conns)
		p.conns = append(p.conns, conn)
		p.Mu.Unlock()
		p.running.Go(func() {
			s(&Visitor{Peer: p, Conn: conn}, n)
			_ = conn.Close()
		})
	}
}

// hangUp closes every connection.
func (p *Scripted) HangUp() {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
}

func (p *Scripted) Connections() int {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	return len(p.conns)
}

func (p *Scripted) Fetched() int {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	return p.fetches
}

func (p *Scripted) Requests() []wire.Header {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	return slices.Clone(p.headers)
}

// visitor is the peer's end of a data connection. Its methods report whether the connection is still good.
type Visitor struct {
	Peer *Scripted
	Conn *net.TCPConn
}

func (v *Visitor) Header(h *wire.Header) bool {
	var b [wire.HeaderSize]byte
	if _, err := io.ReadFull(v.Conn, b[:]); err != nil {
		return false
	}
	var err error
	if *h, err = wire.ParseHeader(b[:], false); err != nil {
		return false
	}
	v.Peer.Mu.Lock()
	v.Peer.headers = append(v.Peer.headers, *h)
	v.Peer.Mu.Unlock()
	return true
}

// holds reports whether the peer's memory, shown or not, has the range.
func (v *Visitor) holds(h wire.Header) bool {
	return slices.ContainsFunc(v.Peer.Memory, func(b []byte) bool {
		return core.Range{Addr: AddressOf(b), Length: uint64(len(b))}.Holds(h.Addr, h.Length)
	})
}

func (v *Visitor) Send(b []byte) bool {
	_, err := v.Conn.Write(b)
	return err == nil
}

func (v *Visitor) Status(code uint32) bool {
	var b [wire.StatusSize]byte
	wire.PutStatus(b[:], code)
	return v.Send(b[:])
}

// skip reads n bytes.
func (v *Visitor) Skip(n int64) bool {
	_, err := io.CopyN(io.Discard, v.Conn, n)
	return err == nil
}

// reject answers with a rejection, and closes when the initiator has.
func (v *Visitor) Reject() {
	_ = v.Status(wire.StatusRejected)
	_ = v.Conn.CloseWrite()
	_, _ = io.Copy(io.Discard, v.Conn)
}

// obey does what a request asks, and answers it.
func (v *Visitor) Obey(h wire.Header) bool {
	if !v.holds(h) {
		if h.V2 {
			v.Reject()
		}
		return false
	}
	place := core.MemoryAt(uintptr(h.Addr), h.Length)
	if h.Op == wire.Write {
		_, err := io.ReadFull(v.Conn, place)
		return err == nil && (!h.V2 || v.Status(wire.StatusOK))
	}
	return (!h.V2 || v.Status(wire.StatusOK)) && v.Send(place)
}

// serve is a script of good manners.
func ServeWell(v *Visitor, _ int) {
	var h wire.Header
	for v.Header(&h) && v.Obey(h) {
	}
}

// atFirst plays one script on the first n connections, and serves well on the others.
func AtFirst(n int, s Script) Script {
	return func(v *Visitor, i int) {
		if i < n {
			s(v, i)
		} else {
			ServeWell(v, i)
		}
	}
}

// waitForEnd returns when the initiator has closed the connection.
func (v *Visitor) WaitForEnd() { _, _ = io.Copy(io.Discard, v.Conn) }

func (v *Visitor) Reset() {
	_ = v.Conn.SetLinger(0)
	_ = v.Conn.Close()
}

func OpenSegment(t testing.TB, e *core.Engine, name string) core.SegmentID {
	t.Helper()
	id, err := e.OpenSegment(name)
	require.NoError(t, err)
	return id
}

// ask is a request that moves all of local.
func Ask(op core.Opcode, local []byte, id core.SegmentID, remote []byte) core.Request {
	return core.Request{Opcode: op, Local: AddressOf(local), Target: id, Remote: uint64(AddressOf(remote)), Length: uint64(len(local))}
}

// scattered are requests for n blocks of a size, none of which is adjacent to another.
func Scattered(op core.Opcode, local []byte, id core.SegmentID, remote []byte, n, size int) []core.Request {
	reqs := make([]core.Request, n)
	for i := range reqs {
		at := i * (size + 1)
		reqs[i] = Ask(op, local[at:at+size], id, remote[at:at+size])
	}
	return reqs
}

func Submit(t testing.TB, e *core.Engine, reqs ...core.Request) *core.Batch {
	t.Helper()
	b, err := e.AllocateBatch(len(reqs))
	require.NoError(t, err)
	require.NoError(t, e.Submit(b, reqs, nil))
	return b
}

// states are the tasks' final states.
func States(t testing.TB, b *core.Batch) []core.State {
	t.Helper()
	Wait(t, b)
	all := make([]core.State, b.Summary().Tasks)
	for i := range all {
		var err error
		all[i], _, err = b.Status(i)
		require.NoError(t, err)
	}
	return all
}

// completes checks that all of a batch does.
func Completes(t testing.TB, b *core.Batch) {
	t.Helper()
	Wait(t, b)
	require.NoError(t, b.Err())
	require.Equal(t, b.Summary().Tasks, b.Summary().Completed)
}

// failsOnly checks that the tasks with these numbers fail and the others complete.
func FailsOnly(t testing.TB, b *core.Batch, failing ...int) {
	t.Helper()
	for i, state := range States(t, b) {
		if slices.Contains(failing, i) {
			require.Equal(t, core.Failed, state, "task %d", i)
		} else {
			require.Equal(t, core.Completed, state, "task %d; first error: %v", i, b.Err())
		}
	}
}

// oneLane leaves the initiator no choice of connections.
func OneLane(c *core.Config) { c.LanesPerPeer = 1 }

// impatient makes the initiator give up soon.
func Impatient(c *core.Config) {
	c.ProgressTimeout, c.StatusTimeout = 200*time.Millisecond, 200*time.Millisecond
}

func FewRetries(c *core.Config)  { c.RetryCount = 2 }
func SpeakV1(c *core.Config)     { c.ForceProtoV1 = true }
func WithoutPool(c *core.Config) { c.ConnectionPool = false }

// ways are the three ways to reach a peer.
var Ways = []struct {
	Name   string
	Config func(*core.Config)
}{
	{"lanes", func(*core.Config) {}},
	{"a connection per request", WithoutPool},
	{"version 1", SpeakV1},
}

// blockedPort is a data port that lets nobody connect, and refuses nobody either.
func BlockedPort(t testing.TB) (port int) {
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

// engine is an engine that has a transport made by open, if that is not nil. It stands for an engine on another host.
func Engine(t testing.TB, open func(*core.Engine) (core.Transport, error), change ...func(*core.Config)) *core.Engine {
	t.Helper()
	config := core.DefaultConfig()
	config.SameHost = false // engines stand for those of several hosts
	for _, f := range change {
		f(&config)
	}
	e, err := core.New(core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: config, Log: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.Close() })
	_, err = e.Install("tcp", open)
	require.NoError(t, err)
	return e
}

func Wait(t testing.TB, b *core.Batch) {
	t.Helper()
	done := make(chan struct{})
	b.OnDone(func() { close(done) })
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("the batch does not end: %+v", b.Summary())
	}
}

// closedPort is one at which nobody answers any more.
func ClosedPort(t testing.TB) int {
	t.Helper()
	port, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	require.NoError(t, port.Close())
	return port.Addr().(*net.TCPAddr).Port
}

// returns fails the test when f does not return.
func Returns(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(Patience):
		require.Fail(t, what+" does not return")
	}
}

func OnOneHost(c *core.Config) { c.SameHost = true }

// performAs is perform for a peer that has an identity and shows another engine's data port.
func PerformAs(t testing.TB, shown wire.Identity, port int, memory ...[]byte) *Scripted {
	p := Perform(t, 2, ServeWell, memory...)
	p.Mu.Lock()
	defer p.Mu.Unlock()
	p.Shown.IsKvferry, p.Shown.Identity, p.Shown.Hello, p.Shown.DataPort = true, shown.String(), 1, port
	return p
}

// reincarnate has a peer's handshake port answer for another engine.
func (p *Scripted) Reincarnate(e *core.Engine) {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	p.Shown = p.DescriptorOf(e)
}

// descriptorOf is that of an engine under the peer's name.
func (p *Scripted) DescriptorOf(e *core.Engine) metadata.Descriptor {
	d := e.Descriptor()
	return metadata.Descriptor{Name: p.Name, Protocol: "tcp", DataHost: "127.0.0.1", DataPort: d.DataPort, ProtoVersion: 2,
		IsKvferry: true, Identity: d.Identity, Hello: d.Hello, Buffers: d.Buffers}
}

// addressOf is the address of memory that is not on a stack.
func AddressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// opcodes are both of them.
var Opcodes = []core.Opcode{core.Write, core.Read}

// SameHost is an engine with registered memory and the bytes of it, and another engine that has opened it.
func SameHost(t testing.TB, open func(*core.Engine) (core.Transport, error), length int, change ...func(*core.Config)) (target, e *core.Engine, memory, local []byte, id core.SegmentID) {
	t.Helper()
	target, e = Engine(t, open, OnOneHost), Engine(t, open, append([]func(*core.Config){OnOneHost}, change...)...)
	memory, local = Mapped(t, length), Mapped(t, length)
	Fill(memory, 1)
	require.NoError(t, target.Register(AddressOf(memory), uint64(length), "cpu:0", true))
	return target, e, memory, local, OpenSegment(t, e, target.Name())
}
