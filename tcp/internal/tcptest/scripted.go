package tcptest

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/metadata"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// Scripted is a peer whose handshake is real and whose data port does what the test says.
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

// Script serves a connection, the n-th from 0. The connection is closed when it returns.
type Script func(c *Visitor, n int)

// Perform starts a peer that shows the memory and the protocol version.
func Perform(t testing.TB, version int, s Script, memory ...[]byte) *Scripted {
	t.Helper()
	p := &Scripted{T: t, Memory: memory}
	p.Show(version, memory...)
	handshakes, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	p.Name = handshakes.Addr().String()
	server := metadata.Serve(handshakes, metadata.Handlers{Descriptor: p.descriptor,
		Notify: func(metadata.Notification, netip.Addr) error { return nil }}, metadata.HandshakeOptions{})
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		p.LeavePort()
		p.HangUp()
		p.running.Wait()
	})
	p.EnterPort(s)
	return p
}

// Show sets the descriptor's version and buffers.
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

// EnterPort opens a data port and shows it.
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

// LeavePort closes the data port. The kernel takes connections for it as long as somebody accepts.
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

// HangUp closes every connection.
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

// Visitor is the peer's end of a data connection. Its methods report whether the connection is still good.
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

// Skip reads n bytes.
func (v *Visitor) Skip(n int64) bool {
	_, err := io.CopyN(io.Discard, v.Conn, n)
	return err == nil
}

// Reject answers with a rejection, and closes when the initiator has.
func (v *Visitor) Reject() { v.Refuse(wire.StatusRejected) }

// Refuse is Reject with a code of its own.
func (v *Visitor) Refuse(code uint32) {
	_ = v.Status(code)
	_ = v.Conn.CloseWrite()
	_, _ = io.Copy(io.Discard, v.Conn)
}

// Obey does what a request asks, and answers it.
func (v *Visitor) Obey(h wire.Header) bool {
	if !v.holds(h) {
		if h.V2 {
			v.Reject()
		}
		return false
	}
	place := hostmem.At(uintptr(h.Addr), h.Length)
	if h.Op == wire.Write {
		_, err := io.ReadFull(v.Conn, place)
		return err == nil && (!h.V2 || v.Status(wire.StatusOK))
	}
	return (!h.V2 || v.Status(wire.StatusOK)) && v.Send(place)
}

// ServeWell is a script that answers every request.
func ServeWell(v *Visitor, _ int) {
	var h wire.Header
	for v.Header(&h) && v.Obey(h) {
	}
}

// AtFirst plays one script on the first n connections, and serves well on the others.
func AtFirst(n int, s Script) Script {
	return func(v *Visitor, i int) {
		if i < n {
			s(v, i)
		} else {
			ServeWell(v, i)
		}
	}
}

// WaitForEnd returns when the initiator has closed the connection.
func (v *Visitor) WaitForEnd() { _, _ = io.Copy(io.Discard, v.Conn) }

func (v *Visitor) Reset() {
	_ = v.Conn.SetLinger(0)
	_ = v.Conn.Close()
}

// PerformAs is perform for a peer that has an identity and shows another engine's data port.
func PerformAs(t testing.TB, shown wire.Identity, port int, memory ...[]byte) *Scripted {
	p := Perform(t, 2, ServeWell, memory...)
	p.Mu.Lock()
	defer p.Mu.Unlock()
	p.Shown.IsKvferry, p.Shown.Identity, p.Shown.Hello, p.Shown.DataPort = true, shown.String(), 1, port
	return p
}

// Reincarnate has a peer's handshake port answer for another engine.
func (p *Scripted) Reincarnate(e *core.Engine) {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	p.Shown = p.DescriptorOf(e)
}

// DescriptorOf is that of an engine under the peer's name.
func (p *Scripted) DescriptorOf(e *core.Engine) metadata.Descriptor {
	d := e.Descriptor()
	return metadata.Descriptor{Name: p.Name, Protocol: "tcp", DataHost: "127.0.0.1", DataPort: d.DataPort, ProtoVersion: 2,
		IsKvferry: true, Identity: d.Identity, Hello: d.Hello, Buffers: d.Buffers}
}

// AddressOf is hostmem.AddressOf.
func AddressOf(b []byte) uintptr { return hostmem.AddressOf(b) }
