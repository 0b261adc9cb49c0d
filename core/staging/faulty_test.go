package staging_test

import (
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"kvferry/core/device"

	"github.com/stretchr/testify/require"
)

var errInjected = errors.New("injected fault")

// faulty is a device whose calls fail as a test says. A call that gives something up fails after it has done so; only a
// stream that cannot be closed stays open.
type faulty struct {
	device.Device

	mu    sync.Mutex
	calls map[string]int
	fail  func(call string, nth int) error // nth counts from 1
	live  map[any]func() error             // how to give up what was made and was not given up yet
}

func newFaulty(d device.Device) *faulty {
	return &faulty{Device: d, calls: map[string]int{}, live: map[any]func() error{}, fail: func(string, int) error { return nil }}
}

// made notes what there is to be given up.
func (f *faulty) made(what any, giveUp func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.live[what] = giveUp
}

func (f *faulty) gone(what any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.live, what)
}

// giveUpAll gives up what staging has left.
func (f *faulty) giveUpAll(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(t, f.Device.Bind())
	for _, giveUp := range f.live {
		require.NoError(t, giveUp())
	}
	require.NoError(t, f.Device.Unbind())
}

// failNth has one use of a call fail.
func (f *faulty) failNth(call string, n int) {
	f.failWhen(func(c string, nth int) bool { return c == call && nth == n })
}

func (f *faulty) failWhen(when func(call string, nth int) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = func(call string, nth int) error {
		if when(call, nth) {
			return errInjected
		}
		return nil
	}
}

func (f *faulty) failNothing() { f.failWhen(func(string, int) bool { return false }) }

// count returns how often a call was made.
func (f *faulty) count(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

func (f *faulty) called(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[call]++
	return f.fail(call, f.calls[call])
}

func (f *faulty) Bind() error {
	if err := f.called("Bind"); err != nil {
		return err
	}
	return f.Device.Bind()
}

func (f *faulty) Unbind() error { return errors.Join(f.Device.Unbind(), f.called("Unbind")) }

func (f *faulty) Allocate(length uint64) (uintptr, error) {
	if err := f.called("Allocate"); err != nil {
		return 0, err
	}
	addr, err := f.Device.Allocate(length)
	f.made(addr, func() error { return f.Device.Free(addr) })
	return addr, err
}

func (f *faulty) AllocatePinned(length uint64) (uintptr, error) {
	if err := f.called("AllocatePinned"); err != nil {
		return 0, err
	}
	addr, err := f.Device.AllocatePinned(length)
	f.made(addr, func() error { return f.Device.FreePinned(addr) })
	return addr, err
}

func (f *faulty) Free(addr uintptr) error {
	f.gone(addr)
	return errors.Join(f.Device.Free(addr), f.called("Free"))
}

func (f *faulty) FreePinned(addr uintptr) error {
	f.gone(addr)
	return errors.Join(f.Device.FreePinned(addr), f.called("FreePinned"))
}

func (f *faulty) NewStream() (device.Stream, error) {
	if err := f.called("NewStream"); err != nil {
		return nil, err
	}
	s, err := f.Device.NewStream()
	f.made(s, s.Close)
	return &faultyStream{s, f}, err
}

func (f *faulty) NewEvent() (device.Event, error) {
	if err := f.called("NewEvent"); err != nil {
		return nil, err
	}
	e, err := f.Device.NewEvent()
	f.made(e, e.Close)
	return &faultyEvent{e, f}, err
}

type faultyStream struct {
	device.Stream
	on *faulty
}

// Copy fails after the first half of the copies.
func (s *faultyStream) Copy(kind device.Kind, copies []device.Copy) (int, error) {
	if err := s.on.called("Copy"); err != nil {
		issued, _ := s.Stream.Copy(kind, copies[:len(copies)/2])
		return issued, err
	}
	return s.Stream.Copy(kind, copies)
}

func (s *faultyStream) CopyBatch(kind device.Kind, copies []device.Copy) error {
	if err := s.on.called("CopyBatch"); err != nil {
		return err
	}
	return s.Stream.CopyBatch(kind, copies)
}

func (s *faultyStream) Record(e device.Event) error {
	if err := s.on.called("Record"); err != nil {
		return err
	}
	return s.Stream.Record(e.(*faultyEvent).Event)
}

func (s *faultyStream) Drain(timeout time.Duration) error {
	if err := s.on.called("Drain"); err != nil {
		return err
	}
	if err := s.on.called("DrainInTime"); err != nil {
		<-time.After(timeout)
		return err
	}
	return s.Stream.Drain(timeout)
}

func (s *faultyStream) Close() error {
	if err := s.on.called("CloseStream"); err != nil {
		return err
	}
	s.on.gone(s.Stream)
	return s.Stream.Close()
}

type faultyEvent struct {
	device.Event
	on *faulty
}

func (e *faultyEvent) Wait(timeout time.Duration) (bool, error) {
	if err := e.on.called("Wait"); err != nil {
		return false, err
	}
	if e.on.called("WaitInTime") != nil {
		return false, nil
	}
	return e.Event.Wait(timeout)
}

func (e *faultyEvent) Close() error {
	e.on.gone(e.Event)
	return errors.Join(e.Event.Close(), e.on.called("CloseEvent"))
}
