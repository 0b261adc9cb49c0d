package core_test

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// hanging is a runtime whose library calls hang until the test releases them: Open of a device, or the freeing of staging
// blocks of device 0, where the test says so, and else the copies of device 0.
type hanging struct {
	*device.Host
	open     bool
	free     bool
	begun    chan struct{} // gets one for each call that hangs
	released chan struct{}
}

func newHanging(t *testing.T) *hanging {
	r := &hanging{Host: device.NewHost("npu", 2), begun: make(chan struct{}, 100), released: make(chan struct{})}
	t.Cleanup(func() {
		require.Eventually(t, func() bool { return len(r.Leaks()) == 0 }, longWait, 1000, "leaks: %v", r.Leaks())
	})
	return r
}

func (r *hanging) hang() {
	r.begun <- struct{}{}
	<-r.released
}

func (r *hanging) Open(index int) (device.Device, error) {
	if r.open {
		r.hang()
	}
	d, err := r.Host.Open(index)
	if index == 0 {
		d = hangingDevice{d, r}
	}
	return d, err
}

type hangingDevice struct {
	device.Device
	runtime *hanging
}

func (d hangingDevice) NewStream() (device.Stream, error) {
	s, err := d.Device.NewStream()
	return hangingStream{s, d.runtime}, err
}

func (d hangingDevice) FreePinned(addr uintptr) error {
	if d.runtime.free {
		d.runtime.hang()
	}
	return d.Device.FreePinned(addr)
}

type hangingStream struct {
	device.Stream
	runtime *hanging
}

func (s hangingStream) Copy(kind device.Kind, copies []device.Copy) (int, error) {
	if !s.runtime.free {
		s.runtime.hang()
	}
	return s.Stream.Copy(kind, copies)
}

// memory is memory of a device, registered.
func (r *hanging) memory(t *testing.T, e *core.Engine, index, length int) []byte {
	t.Helper()
	b, err := r.Allocate(index, uint64(length))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Free(b)) })
	require.NoError(t, e.Register(at(b), uint64(length), "*", true))
	return b
}

func TestADeviceThatHangsHoldsUpNoTransferButItsOwn(t *testing.T) {
	const size = 1 << 20 // more than is copied on the goroutine that submits
	r := newHanging(t)
	w := &wire{memory: make([]byte, 4*size)}
	p := startPairWith(t, &transporttest.Transport{OnSubmit: w.carry}, func(o *core.Options) { o.Runtimes = []device.Runtime{r} })
	impatient(p.Engine)
	stuck, other, host := r.memory(t, p.Engine, 0, size), r.memory(t, p.Engine, 1, size), pages(t, 2*size)
	require.NoError(t, p.Register(at(host), 2*size, "cpu:0", true))
	fill(host, 1)
	want := bytes.Clone(host[:size])

	held := p.batch(t, 4)
	own := func(local, remote []byte) core.Request {
		return core.Request{Opcode: core.Write, Local: at(local), Target: core.LocalSegment, Remote: uint64(at(remote)), Length: size}
	}
	far := func(local []byte) core.Request {
		return core.Request{Opcode: core.Write, Local: at(local), Target: p.segment, Remote: 0, Length: size}
	}
	require.NoError(t, p.Submit(held, []core.Request{own(host, stuck), own(stuck, host[size:]), own(stuck, other), far(stuck)}, nil))
	receive(t, r.begun)

	for _, reqs := range [][]core.Request{
		{own(host, host[size:])}, {own(host, other), own(other, host[size:])}, {far(host)}, {far(other)},
	} {
		b := p.batch(t, len(reqs))
		require.NoError(t, p.Submit(b, reqs, nil))
		wait(t, b)
		require.NoError(t, b.Err())
		require.NoError(t, p.FreeBatch(b))
	}
	require.True(t, bytes.Equal(want, w.memory[:size]))
	require.NoError(t, p.Unregister(at(other)))
	requireInUse(t, p.Unregister(at(stuck)), "a WRITE of 1048576 bytes, segment 0")
	require.Equal(t, []core.State{waiting, waiting, waiting, waiting}, states(t, held))

	requireInUse(t, p.Close(), "a copy within this process", "bytes of npu:0's staging blocks")
	close(r.released)
	wait(t, held)
}

func TestADeviceThatHangsWhenItIsClosedKeepsNoOtherFromIt(t *testing.T) {
	r := newHanging(t)
	r.free = true
	p := startPairWith(t, &transporttest.Transport{}, func(o *core.Options) { o.Runtimes = []device.Runtime{r} })
	for index := range 2 {
		memory := r.memory(t, p.Engine, index, 4096)
		b := onItself(t, p.Engine, core.Request{Opcode: core.Write, Local: at(memory), Remote: uint64(at(memory)), Length: 64})
		require.NoError(t, b.Err())
	}
	p.SetEnding(time.Hour)
	release := sync.OnceFunc(func() { close(r.released) })
	t.Cleanup(release)
	closed := make(chan error, 1)
	go func() { closed <- p.Close() }()
	receive(t, r.begun)
	staged := stagedPair{host: r.Host}
	eventually(t, func() bool { return !staged.isStaged("npu:1") })
	require.Empty(t, closed)
	release()
	require.NoError(t, receive(t, closed))
}

func TestALibraryThatHangsInRegisterKeepsNobodyFromClosing(t *testing.T) {
	r := newHanging(t)
	r.open = true
	p := startPairWith(t, &transporttest.Transport{}, func(o *core.Options) { o.Runtimes = []device.Runtime{r} })
	registered := make(chan error, 1)
	b, err := r.Allocate(0, 4096)
	require.NoError(t, err)
	go func() { registered <- p.Register(at(b), 4096, "*", true) }()
	receive(t, r.begun)
	require.NoError(t, p.Register(at(pages(t, 4096)), 4096, "cpu:0", true), "host memory")
	require.NoError(t, p.Close())
	close(r.released)
	require.ErrorIs(t, receive(t, registered), core.ErrClosed)
	require.NoError(t, r.Free(b))
}
