package core_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// streams is a runtime with one stream of the application's, which comes to a place when the test says so.
type streams struct {
	device.Runtime
	queued []func()
	refuse error
	asked  atomic.Int32  // for streams of its devices
	made   atomic.Int32  // of these
	hold   chan struct{} // if not nil, streams are made when it is closed
}

const streamHandle = 0x5000

func (s *streams) Call(stream uintptr, f func()) error {
	if stream != streamHandle {
		return errors.New("no such stream")
	}
	if s.refuse == nil {
		s.queued = append(s.queued, f)
	}
	return s.refuse
}

// reach has the stream come to its next place; the channel is closed when it goes on.
func (s *streams) reach() <-chan struct{} {
	f := s.queued[0]
	s.queued = s.queued[1:]
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		f()
	}()
	return gone
}

func startOrdered(t *testing.T, configure func(*core.Config)) (*pair, *streams) {
	s := &streams{Runtime: device.NewHost("cuda", 1)}
	return startPairWith(t, &transporttest.Transport{}, func(o *core.Options) {
		o.Runtimes = []device.Runtime{device.NewHost("npu", 1), s}
		if configure != nil {
			configure(&o.Config)
		}
	}), s
}

// Open returns a device that counts its streams.
func (s *streams) Open(index int) (device.Device, error) {
	d, err := s.Runtime.Open(index)
	return counting{d, s}, err
}

type counting struct {
	device.Device
	streams *streams
}

func (c counting) NewStream() (device.Stream, error) {
	c.streams.asked.Add(1)
	if c.streams.hold != nil {
		<-c.streams.hold
	}
	c.streams.made.Add(1)
	return c.Device.NewStream()
}

func (p *pair) arrays(lengths ...uint64) *core.Arrays {
	a := &core.Arrays{Opcode: core.Write, Target: p.segment, Lengths: lengths}
	for range lengths {
		a.Local, a.Remote = append(a.Local, 0x10000), append(a.Remote, 0x20000)
	}
	return a
}

// hold waits until the transport has something.
func (p *pair) hold(t *testing.T) {
	t.Helper()
	eventually(t, func() bool { return len(p.transport.Held()) > 0 })
}

func TestNothingIsMovedBeforeTheStreamHasComeToThePlace(t *testing.T) {
	p, s := startOrdered(t, nil)
	a := p.arrays(10, 20)
	require.NoError(t, p.Order("cuda", streamHandle, a))
	require.Empty(t, p.transport.Held())
	a.Lengths[0] = 99 // the arrays are the caller's again
	gone := s.reach()
	p.hold(t)
	require.EqualValues(t, 30, p.transport.Held()[0].Bytes)
	p.transport.SettleAll(nil)
	receive(t, gone)
	require.NoError(t, p.Order("cuda", streamHandle, p.arrays()))
}

// What a device needs for its first copies may have to wait for the streams of the application.
func TestDevicesArePreparedBeforeTheStreamComesToThePlace(t *testing.T) {
	p, s := startOrdered(t, func(c *core.Config) { c.DevicePrepare = false })
	memory, err := s.Runtime.(*device.Host).Allocate(0, 1<<16)
	require.NoError(t, err)
	require.NoError(t, p.Register(at(memory), 1<<16, "*", true))
	require.Zero(t, s.made.Load())
	for range 2 {
		require.NoError(t, p.Order("cuda", streamHandle, p.arrays(10)))
		require.EqualValues(t, 2, s.made.Load(), "one for each direction")
	}
	for range 2 {
		gone := s.reach()
		p.hold(t)
		p.transport.SettleAll(nil)
		receive(t, gone)
	}
}

func TestADeviceIsPreparedWhenItsMemoryIsRegisteredWhichDoesNotWaitForThat(t *testing.T) {
	p, s := startOrdered(t, nil)
	s.hold = make(chan struct{})
	memory, err := s.Runtime.(*device.Host).Allocate(0, 1<<16)
	require.NoError(t, err)
	require.NoError(t, p.Register(at(memory), 1<<15, "*", true))
	require.NoError(t, p.Register(at(memory)+1<<15, 1<<15, "*", true))
	require.Zero(t, s.made.Load())
	close(s.hold)
	eventually(t, func() bool { return s.made.Load() == 2 }) // one for each direction
	require.NoError(t, p.Close())
	require.EqualValues(t, 2, s.made.Load())
}

func TestADeviceThatCannotBePreparedInTimeIsLeftWhenTheEngineIsClosed(t *testing.T) {
	p, s := startOrdered(t, nil)
	s.hold = make(chan struct{})
	memory, err := s.Runtime.(*device.Host).Allocate(0, 1<<16)
	require.NoError(t, err)
	require.NoError(t, p.Register(at(memory), 1<<16, "*", true))
	eventually(t, func() bool { return s.asked.Load() == 2 }) // before that Close ends the preparation
	p.SetEnding(10 * time.Millisecond)
	requireInUse(t, p.Close(), "cuda:0", "a call of its library does not return")
	close(s.hold)
	eventually(t, func() bool { return len(s.Runtime.(*device.Host).Leaks()) == 1 }) // the memory of the application
	require.Contains(t, s.Runtime.(*device.Host).Leaks()[0], "65536")
}

func TestTheStreamWaitsForTheTransfer(t *testing.T) {
	p, s := startOrdered(t, nil)
	require.NoError(t, p.Order("cuda", streamHandle, p.arrays(10)))
	gone := s.reach()
	p.hold(t)
	select {
	case <-gone:
		t.Fatal("it went on")
	default:
	}
	p.transport.SettleAll(nil)
	receive(t, gone)
}

func TestAFailureLetsTheStreamGoOnAndIsTheNextCallsOnce(t *testing.T) {
	p, s := startOrdered(t, nil)
	for range 3 {
		require.NoError(t, p.Order("cuda", streamHandle, p.arrays(10)))
	}
	for _, outcome := range []error{errors.New("the cable was cut"), nil, errors.New("again")} {
		gone := s.reach()
		p.hold(t)
		p.transport.SettleAll(outcome)
		receive(t, gone)
	}
	err := p.Order("cuda", streamHandle, p.arrays(10))
	requireCode(t, status.Context, err)
	require.ErrorIs(t, err, core.ErrEarlierFailed)
	require.ErrorContains(t, err, "so did 1 others")
	require.ErrorContains(t, err, "the cable was cut")
	require.Empty(t, s.queued, "it queues nothing")
	require.NoError(t, p.Order("cuda", streamHandle, p.arrays(10)))
	require.Len(t, s.queued, 1)
}

func TestATransferThatTakesTooLongIsGivenUp(t *testing.T) {
	p, s := startOrdered(t, func(c *core.Config) { c.TransferTimeout = 10 * time.Millisecond })
	require.NoError(t, p.Order("cuda", streamHandle, p.arrays(10)))
	receive(t, s.reach())
	require.Empty(t, p.transport.Held())
	require.ErrorContains(t, p.Order("cuda", streamHandle, p.arrays(10)), "was not done within 10ms")
}

func TestAStreamThatComesToThePlaceOfAClosedEngineGoesOn(t *testing.T) {
	p, s := startOrdered(t, nil)
	require.NoError(t, p.Order("cuda", streamHandle, p.arrays(10)))
	require.NoError(t, p.Order("cuda", streamHandle, p.arrays(10)))
	under := s.reach()
	p.hold(t)
	require.NoError(t, p.Close())
	receive(t, under)
	receive(t, s.reach())
	require.ErrorIs(t, p.Order("cuda", streamHandle, p.arrays(10)), core.ErrClosed)
}

func TestWhatCannotBeQueuedIsSaidAtOnce(t *testing.T) {
	p, s := startOrdered(t, nil)
	for name, refused := range map[string]func() error{
		"no streams of":  func() error { return p.Order("npu", streamHandle, p.arrays(1)) },
		"no such stream": func() error { return p.Order("cuda", 1, p.arrays(1)) },
		"segment": func() error {
			return p.Order("cuda", streamHandle, &core.Arrays{Opcode: core.Read, Target: 99, Local: []uint64{1}})
		},
		"neither READ nor": func() error { return p.Order("cuda", streamHandle, &core.Arrays{Opcode: 7, Local: []uint64{1}}) },
	} {
		require.ErrorContains(t, refused(), name)
	}
	s.refuse = errors.New("the launch failed")
	require.ErrorContains(t, p.Order("cuda", streamHandle, p.arrays(1)), "the launch failed")
	require.Empty(t, s.queued)
}
