package tcptest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/staging"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"
)

// Accelerator is a device in host memory whose copies can be held up, counted and made to fail.
type Accelerator struct {
	device.Device
	T       testing.TB
	host    *device.Host
	Staging *staging.Device

	mu     sync.Mutex
	held   *sync.Cond // holding has changed
	hold   bool
	copies map[device.Kind]int                  // that were asked for
	fault  func(device.Kind, device.Copy) error // is asked before each
}

// Blocks are staging options with so many blocks in each direction.
func Blocks(n int, size uint64) staging.Options {
	return staging.Options{BlockSize: size, PoolSize: 2 * uint64(n) * size}
}

// Accelerate makes a device. At the end of the test nothing is left of it.
func Accelerate(t testing.TB, o staging.Options) *Accelerator {
	t.Helper()
	a := &Accelerator{T: t, host: device.NewHost("npu", 1), copies: map[device.Kind]int{}}
	a.held = sync.NewCond(&a.mu)
	opened, err := a.host.Open(0)
	require.NoError(t, err)
	a.Device = opened
	t.Cleanup(func() { require.Empty(t, a.host.Leaks()) })
	a.Staging = NewStaging(t, a, o)
	return a
}

// NewStaging makes the staging of a device, and closes it at the end of the test.
func NewStaging(t testing.TB, on device.Device, o staging.Options) *staging.Device {
	t.Helper()
	o.GatherBelow, o.Timeout, o.Log = 256<<10, time.Minute, zaptest.NewLogger(t)
	s := staging.New(on, "npu:0", o)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// Runtime is the accelerator as the only device of its kind.
func (a *Accelerator) Runtime() device.Runtime { return acceleratorRuntime{a.host, a} }

type acceleratorRuntime struct {
	*device.Host
	only *Accelerator
}

func (r acceleratorRuntime) Open(int) (device.Device, error) { return r.only, nil }

// Memory is memory of the device, which the test can look at as well.
func (a *Accelerator) Memory(length int) []byte {
	a.T.Helper()
	b, err := a.host.Allocate(0, uint64(length))
	require.NoError(a.T, err)
	a.T.Cleanup(func() { require.NoError(a.T, a.host.Free(b)) })
	return b
}

// HoldCopies keeps copies from being done until the test calls release, or ends.
func (a *Accelerator) HoldCopies() (release func()) {
	set := func(hold bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.hold = hold
		a.held.Broadcast()
	}
	set(true)
	release = func() { set(false) }
	a.T.Cleanup(release)
	return release
}

// FailCopies has copies fail that fault says so about.
func (a *Accelerator) FailCopies(fault func(device.Kind, device.Copy) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = fault
}

func (a *Accelerator) Count(kind device.Kind) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.copies[kind]
}

// WaitForACopy waits until one has been asked for.
func (a *Accelerator) WaitForACopy() {
	a.T.Helper()
	require.Eventually(a.T, func() bool {
		return a.Count(device.HostToDevice)+a.Count(device.DeviceToHost)+a.Count(device.WithinDevice) > 0
	}, Patience, time.Millisecond)
}

func (a *Accelerator) NewStream() (device.Stream, error) {
	s, err := a.Device.NewStream()
	return &acceleratorStream{s, a}, err
}

type acceleratorStream struct {
	device.Stream
	on *Accelerator
}

func (s *acceleratorStream) Copy(kind device.Kind, copies []device.Copy) (issued int, err error) {
	for i, c := range copies {
		if err := s.on.admit(kind, c); err != nil {
			return i, err
		}
		if n, err := s.Stream.Copy(kind, copies[i:i+1]); err != nil {
			return i + n, err
		}
	}
	return len(copies), nil
}

func (a *Accelerator) admit(kind device.Kind, c device.Copy) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.copies[kind]++
	for a.hold {
		a.held.Wait()
	}
	if a.fault != nil {
		return a.fault(kind, c)
	}
	return nil
}

// FailAround has copies of a direction fail that touch a byte of the device.
func (a *Accelerator) FailAround(kind device.Kind, addr uintptr) {
	a.FailCopies(func(k device.Kind, c device.Copy) error {
		on := c.Src
		if k == device.HostToDevice {
			on = c.Dst
		}
		if k == device.WithinDevice { // gathering and scattering touch it from either side
			if addr-c.Src < uintptr(c.Length) || addr-c.Dst < uintptr(c.Length) {
				return ErrInjected
			}
			return nil
		}
		if k == kind && addr-on < uintptr(c.Length) {
			return ErrInjected
		}
		return nil
	})
}

// Lease takes all that there is of a single block.
func (a *Accelerator) Lease(way staging.Direction) *staging.Lease {
	a.T.Helper()
	account := a.Staging.Account(way, staging.Target, nil)
	a.T.Cleanup(account.Close)
	ctx, done := context.WithTimeout(context.Background(), Patience)
	defer done()
	lease, err := account.Lease(ctx, a.Staging.BlockSize())
	require.NoError(a.T, err)
	return lease
}

// ErrInjected is why copies fail.
var ErrInjected = errors.New("507899: the device is on fire")
