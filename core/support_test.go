package core_test

import (
	"testing"
	"time"
	"unsafe"

	"kvferry/core"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// longWait is how long tests wait for something that must happen.
const longWait = 20 * time.Second

// pages is memory outside the Go heap, all zeros, for one test.
func pages(t testing.TB, length int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(b)) })
	return b
}

func at(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// fill puts bytes into b that differ from one place to the next, and from one seed to the next.
func fill(b []byte, seed byte) {
	const period = 1 << 16
	for i := range b[:min(len(b), period)] {
		b[i] = byte(i*7+i>>8) + seed
	}
	for n := period; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

// startEngine starts an engine that ends with the test. configure may be nil.
func startEngine(t testing.TB, d *metadatatest.Directory, configure func(*core.Options)) *core.Engine {
	t.Helper()
	o := core.Options{Name: "127.0.0.1", Config: core.DefaultConfig(), Log: zap.NewNop()}
	if configure != nil {
		configure(&o)
	}
	e, err := core.Start(o, d.Store())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// startPeer starts an engine that others can open the segment of. Nobody connects to its data port.
func startPeer(t testing.TB, d *metadatatest.Directory) *core.Engine {
	t.Helper()
	e := startEngine(t, d, nil)
	install(t, e, &transporttest.Transport{Address: core.Endpoint{Port: 9, ProtoVersion: 2}})
	return e
}

func install(t testing.TB, e *core.Engine, transport *transporttest.Transport) {
	t.Helper()
	_, err := e.Install("fake", transport.Open)
	require.NoError(t, err)
}

// pair is an engine with a fake transport, and a peer whose segment it has opened.
type pair struct {
	*core.Engine
	directory *metadatatest.Directory
	transport *transporttest.Transport
	peer      *core.Engine
	segment   core.SegmentID
}

func startPair(t testing.TB, configure func(*core.Options)) *pair {
	t.Helper()
	return startPairWith(t, &transporttest.Transport{}, configure)
}

func startPairWith(t testing.TB, transport *transporttest.Transport, configure func(*core.Options)) *pair {
	t.Helper()
	p := &pair{directory: metadatatest.NewDirectory(), transport: transport}
	p.peer = startPeer(t, p.directory)
	p.Engine = startEngine(t, p.directory, configure)
	install(t, p.Engine, transport)
	p.segment = open(t, p.Engine, p.peer.Name())
	return p
}

func open(t testing.TB, e *core.Engine, name string) core.SegmentID {
	t.Helper()
	id, err := e.OpenSegment(name)
	require.NoError(t, err)
	return id
}

func (p *pair) batch(t testing.TB, capacity int) *core.Batch {
	t.Helper()
	b, err := p.AllocateBatch(capacity)
	require.NoError(t, err)
	return b
}

// writes are requests to the peer with these lengths, from memory that is not registered.
func (p *pair) writes(lengths ...uint64) []core.Request {
	reqs := make([]core.Request, len(lengths))
	for i, n := range lengths {
		reqs[i] = core.Request{Opcode: core.Write, Local: 0x10000, Target: p.segment, Remote: 0x20000, Length: n}
	}
	return reqs
}

// submit submits and returns the work that came of it.
func (p *pair) submit(t testing.TB, b *core.Batch, reqs ...core.Request) *transporttest.Held {
	t.Helper()
	require.NoError(t, p.Submit(b, reqs, nil))
	held := p.transport.Held()
	return held[len(held)-1]
}

// states are the states of all tasks of a batch; it also checks that the bytes go with them.
func states(t testing.TB, b *core.Batch) []core.State {
	t.Helper()
	all := make([]core.State, b.Summary().Tasks)
	for i := range all {
		state, bytes, err := b.Status(i)
		require.NoError(t, err)
		if state != core.Completed {
			require.Zero(t, bytes, "of task %d, which is in state %d", i, state)
		}
		all[i] = state
	}
	return all
}

// wait returns when no task of the batch is unfinished.
func wait(t testing.TB, b *core.Batch) {
	t.Helper()
	done := make(chan struct{})
	b.OnDone(func() { close(done) })
	receive(t, done)
}

// receive waits for a channel.
func receive[T any](t testing.TB, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(longWait):
		require.Fail(t, "what must happen did not")
	}
	return v
}

func eventually(t testing.TB, happened func() bool) {
	t.Helper()
	require.Eventually(t, happened, longWait, time.Millisecond)
}

func requireCode(t testing.TB, want status.Code, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, want, status.Of(err, -1), "of: %v", err)
}
