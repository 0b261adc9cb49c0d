package driver_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/metadata"
	"kvferry/core/staging"
	"kvferry/internal/driver/drivertest"
	"kvferry/tcp"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// node is an engine as an application has it: found by its address, on TCP over the loopback interface, with simulated
// devices.
type node struct {
	*core.Engine
	t    testing.TB
	logs *observer.ObservedLogs
}

// startNode starts an engine that ends with the test; a test that expects Close to fail calls it first. configure may be
// nil. It has the devices of the simulator that the test uses, or those of the runtimes.
func startNode(t testing.TB, configure func(*core.Config), runtimes ...device.Runtime) *node {
	t.Helper()
	if runtimes == nil {
		runtimes = []device.Runtime{simtest.Runtime(t)}
	}
	n := newNode(t, configure, runtimes...)
	_, err := n.Install("tcp", tcp.Open)
	require.NoError(t, err)
	return n
}

// newNode is startNode without a transport.
func newNode(t testing.TB, configure func(*core.Config), runtimes ...device.Runtime) *node {
	t.Helper()
	return newNodeWith(t, func(o *core.Options) {
		if configure != nil {
			configure(&o.Config)
		}
	}, runtimes...)
}

// newNodeWith is newNode with all options.
func newNodeWith(t testing.TB, configure func(*core.Options), runtimes ...device.Runtime) *node {
	t.Helper()
	observed, logs := observer.New(zapcore.DebugLevel)
	o := core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: core.DefaultConfig(), Log: zap.New(observed)}
	o.Config.SameHost = false // the engines stand for two hosts
	// Tests count calls and have them fail: nothing else may make some.
	o.Config.DeviceCopy, o.Config.DevicePrepare = staging.ByDefault, false
	o.Runtimes = runtimes
	configure(&o)
	e, err := core.New(o)
	require.NoError(t, err)
	n := &node{e, t, logs}
	t.Cleanup(func() { require.NoError(t, n.closes()) })
	return n
}

// closes is Close, which takes a few seconds at most.
func (n *node) closes() error {
	n.t.Helper()
	closed := make(chan error, 1)
	go func() { closed <- n.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(enough / 2):
		require.Fail(n.t, "Close does not return")
		return nil
	}
}

// small gives an engine so few staging blocks that they are used again and again: two in each direction.
func small(c *core.Config) { c.StagingBlockSize, c.StagingPoolSize = 128*kib, 4*128*kib }

// smallHalf is the most that is staged in one direction then, in bytes.
const smallHalf = 2 * 128 * kib

// memory is registered memory of a node: a device's, or the host's.
type memory struct {
	addr   uintptr
	length int
	on     *accelerator // nil for host memory
	host   []byte
}

// accelerator is a simulated device as an application has it.
type accelerator struct {
	*simtest.Device
	location string
}

func newDevice(t testing.TB, index int) *accelerator {
	t.Helper()
	return &accelerator{simtest.NewDevice(t, index), fmt.Sprintf("%s:%d", simtest.Runtime(t).Name(), index)}
}

// forgetTables has what was measured on a device be forgotten, now and at the end of the test.
func forgetTables(t testing.TB, index int) *device.Tables {
	t.Helper()
	d, err := simtest.Runtime(t).Open(index)
	require.NoError(t, err)
	tables := d.(device.Timer).Tables()
	tables.Forget()
	t.Cleanup(tables.Forget)
	return tables
}

// on registers new memory of a device, with unlike bytes in it.
func (n *node) on(device *accelerator, length int) *memory {
	n.t.Helper()
	return n.register(&memory{addr: device.Alloc(length), length: length, on: device})
}

// onHost registers new memory of the host, with unlike bytes in it.
func (n *node) onHost(length int) *memory {
	n.t.Helper()
	host := pages(n.t, length)
	return n.register(&memory{addr: drivertest.AddressOf(host), length: length, host: host})
}

func (n *node) register(m *memory) *memory {
	n.t.Helper()
	location := "*"
	if m.on != nil {
		location = m.on.location
	}
	require.NoError(n.t, n.Register(m.addr, uint64(m.length), location, true))
	m.write(noise(m.length))
	return m
}

// pages is memory outside the Go heap, all zeros, for one test.
func pages(t testing.TB, length int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(b)) })
	return b
}

// noise is bytes of which no two stretches are alike.
func noise(length int) []byte {
	b := make([]byte, length+8)
	for i := 0; i < length; i += 8 {
		binary.NativeEndian.PutUint64(b[i:], rand.Uint64())
	}
	return b[:length]
}

func (m *memory) write(b []byte) {
	if m.on != nil {
		m.on.Write(m.addr, b)
	} else {
		copy(m.host, b)
	}
}

func (m *memory) read() []byte {
	if m.on != nil {
		return m.on.Read(m.addr, m.length)
	}
	return append([]byte(nil), m.host...)
}

// span is where a block lies on both sides.
type span struct{ at, length int }

// scattered are blocks of the lengths, in turn, with gaps between them, in so many bytes. Every other one is not aligned.
func scattered(within int, lengths ...int) []span {
	var spans []span
	for at, i := 0, 0; at+lengths[i%len(lengths)] <= within; i++ {
		length := lengths[i%len(lengths)]
		spans = append(spans, span{at, length})
		at = (at+length)/64*64 + 128 + i%2*31
	}
	return spans
}

// requests are one for each block.
func requests(op core.Opcode, local *memory, segment core.SegmentID, remote *memory, spans ...span) []core.Request {
	reqs := make([]core.Request, len(spans))
	for i, s := range spans {
		reqs[i] = core.Request{Opcode: op, Local: local.addr + uintptr(s.at), Target: segment,
			Remote: uint64(remote.addr) + uint64(s.at), Length: uint64(s.length)}
	}
	return reqs
}

// moved is what to holds when the blocks have come from from.
func moved(to, from *memory, spans ...span) []byte {
	want, source := to.read(), from.read()
	for _, s := range spans {
		copy(want[s.at:s.at+s.length], source[s.at:])
	}
	return want
}

// ways are both directions of a request, with its destination and source.
var ways = map[core.Opcode]func(local, remote *memory) (to, from *memory){
	core.Write: func(local, remote *memory) (to, from *memory) { return remote, local },
	core.Read:  func(local, remote *memory) (to, from *memory) { return local, remote },
}

// transfer moves the blocks, and compares all memory of the destination.
func (n *node) transfer(op core.Opcode, local *memory, segment core.SegmentID, remote *memory, spans ...span) {
	n.t.Helper()
	to, from := ways[op](local, remote)
	want := moved(to, from, spans...)
	b := n.submit(requests(op, local, segment, remote, spans...)...)
	n.wait(b)
	require.NoError(n.t, b.Err())
	requireBytes(n.t, want, to)
}

func requireBytes(t testing.TB, want []byte, m *memory) {
	t.Helper()
	got := m.read()
	if bytes.Equal(want, got) {
		return
	}
	for i := range want {
		if want[i] != got[i] {
			require.Failf(t, "wrong bytes", "the first of them at %d of %d", i, len(want))
		}
	}
}

func (n *node) submit(reqs ...core.Request) *core.Batch {
	n.t.Helper()
	b, err := n.AllocateBatch(len(reqs))
	require.NoError(n.t, err)
	require.NoError(n.t, n.Submit(b, reqs, nil))
	return b
}

// wait waits until the batch has ended: by itself, since enough is less than any timeout of the engine.
func (n *node) wait(b *core.Batch) {
	n.t.Helper()
	select {
	case <-ended(b):
	case <-time.After(enough):
		require.Fail(n.t, "the batch does not end")
	}
}

func ended(b *core.Batch) <-chan struct{} {
	done := make(chan struct{})
	b.OnDone(func() { close(done) })
	return done
}

// states are those of all tasks of a batch.
func (n *node) states(b *core.Batch) []core.State {
	n.t.Helper()
	var all []core.State
	for id := range b.Summary().Tasks {
		state, _, err := b.Status(int(id))
		require.NoError(n.t, err)
		all = append(all, state)
	}
	return all
}

// opens returns the id of another's segment.
func (n *node) opens(name string) core.SegmentID {
	n.t.Helper()
	id, err := n.OpenSegment(name)
	require.NoError(n.t, err)
	return id
}

// pair is two engines, one of which has opened the other's segment.
type pair struct {
	initiator, target *node
	segment           core.SegmentID
}

func startPair(t testing.TB, configure func(*core.Config), runtimes ...device.Runtime) *pair {
	t.Helper()
	p := &pair{initiator: startNode(t, configure, runtimes...), target: startNode(t, configure, runtimes...)}
	p.segment = p.initiator.opens(p.target.Name())
	return p
}

// rawPeer is the owner of a segment with one big buffer, whose data port does as the test says.
type rawPeer struct {
	name string // of the segment
	t    testing.TB

	running  sync.WaitGroup
	mu       sync.Mutex
	accepted []*net.TCPConn
}

// rawBase is the address of the buffer, which is where nothing else can be.
const rawBase = 1 << 60

// startPeer starts a peer that serves each connection by a script, and then closes it. It receives no more ahead of its
// reading than a little.
func startPeer(t testing.TB, script func(conn *net.TCPConn)) *rawPeer {
	t.Helper()
	p := &rawPeer{t: t}
	data, handshakes := p.listen(), p.listen()
	p.name = handshakes.Addr().String()
	server := metadata.Serve(handshakes, metadata.Handlers{
		Descriptor: func() *metadata.Descriptor {
			return &metadata.Descriptor{Name: p.name, Protocol: "tcp", DataHost: "127.0.0.1", DataPort: portOf(data), ProtoVersion: 2,
				Buffers: []metadata.Buffer{{Name: "cpu:0", Addr: rawBase, Length: 1 << 40}}}
		},
		Notify: func(metadata.Notification, netip.Addr) error { return errors.New("it takes none") },
	}, metadata.HandshakeOptions{})
	p.running.Go(func() { p.accept(data, script) })
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		require.NoError(t, data.Close())
		p.hangUp()
		p.running.Wait()
	})
	return p
}

func (p *rawPeer) listen() *net.TCPListener {
	p.t.Helper()
	config := net.ListenConfig{Control: receiveLittle}
	listener, err := config.Listen(p.t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(p.t, err)
	return listener.(*net.TCPListener)
}

// receiveLittle has a socket receive no more than a little that is not read.
func receiveLittle(_, _ string, socket syscall.RawConn) (err error) {
	failed := socket.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 64*kib) })
	if err == nil {
		err = failed
	}
	return err
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

func (p *rawPeer) accept(data *net.TCPListener, script func(*net.TCPConn)) {
	for {
		conn, err := data.AcceptTCP()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.accepted = append(p.accepted, conn)
		p.mu.Unlock()
		p.running.Go(func() {
			script(conn)
			_ = conn.Close()
		})
	}
}

func (p *rawPeer) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.accepted {
		_ = conn.Close()
	}
}

// dialRaw connects to a node's data port, as a peer that receives no more ahead of its reading than a little.
func (n *node) dialRaw() net.Conn {
	n.t.Helper()
	dialer := net.Dialer{Control: receiveLittle}
	address := net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: n.Descriptor().DataPort}
	conn, err := dialer.Dial("tcp", address.String())
	require.NoError(n.t, err)
	n.t.Cleanup(func() { _ = conn.Close() })
	require.NoError(n.t, conn.SetDeadline(time.Now().Add(enough)))
	return conn
}

// header is a request as it is on the wire, in the second version of the protocol: see docs/wire.md.
type header struct {
	length, addr uint64
	op           core.Opcode
}

const (
	headerSize = 24
	statusOK   = 0x4D435456 << 32
)

func (h header) encode() []byte {
	b := binary.LittleEndian.AppendUint64(nil, h.length)
	b = binary.LittleEndian.AppendUint64(b, h.addr)
	return append(b, 0x80|byte(h.op), 0, 0, 0, 0, 0, 0, 0)
}

func readHeader(conn net.Conn) (h header, err error) {
	var b [headerSize]byte
	if _, err = io.ReadFull(conn, b[:]); err != nil {
		return h, err
	}
	h = header{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:]), core.Opcode(b[16] &^ 0x80)}
	return h, nil
}

func answer(conn net.Conn) error {
	_, err := conn.Write(binary.LittleEndian.AppendUint64(nil, statusOK))
	return err
}

// eventually waits for what must happen.
func eventually(t testing.TB, happened func() bool, what string) {
	t.Helper()
	require.Eventually(t, happened, enough, time.Millisecond, what)
}
