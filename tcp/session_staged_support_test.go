package tcp

import (
	"sync"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"
)

// accelerator is a device in host memory whose copies can be held up, counted and made to fail.
type accelerator struct {
	device.Device
	t       testing.TB
	host    *device.Host
	staging *staging.Device

	mu     sync.Mutex
	held   *sync.Cond // holding has changed
	hold   bool
	copies map[device.Kind]int                  // that were asked for
	fault  func(device.Kind, device.Copy) error // is asked before each
}

// blocks are staging options with so many blocks in each direction.
func blocks(n int, size uint64) staging.Options {
	return staging.Options{BlockSize: size, PoolSize: 2 * uint64(n) * size}
}

// accelerate makes a device. At the end of the test nothing is left of it.
func accelerate(t testing.TB, o staging.Options) *accelerator {
	t.Helper()
	a := &accelerator{t: t, host: device.NewHost("npu", 1), copies: map[device.Kind]int{}}
	a.held = sync.NewCond(&a.mu)
	opened, err := a.host.Open(0)
	require.NoError(t, err)
	a.Device = opened
	t.Cleanup(func() { require.Empty(t, a.host.Leaks()) })
	a.staging = stage(t, a, o)
	return a
}

// stage makes the staging of a device, and closes it at the end of the test.
func stage(t testing.TB, on device.Device, o staging.Options) *staging.Device {
	t.Helper()
	o.GatherBelow, o.Timeout, o.Log = 256<<10, time.Minute, zaptest.NewLogger(t)
	s := staging.New(on, "npu:0", o)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// runtime is the accelerator as the only device of its kind.
func (a *accelerator) runtime() device.Runtime { return acceleratorRuntime{a.host, a} }

type acceleratorRuntime struct {
	*device.Host
	only *accelerator
}

func (r acceleratorRuntime) Open(int) (device.Device, error) { return r.only, nil }

// memory is memory of the device, which the test can look at as well.
func (a *accelerator) memory(length int) []byte {
	a.t.Helper()
	b, err := a.host.Allocate(0, uint64(length))
	require.NoError(a.t, err)
	a.t.Cleanup(func() { require.NoError(a.t, a.host.Free(b)) })
	return b
}

// serve starts a target that serves device memory.
func (a *accelerator) serve(o targetOptions, memory ...[]byte) *harness {
	a.t.Helper()
	h := serve(a.t, o)
	for _, b := range memory {
		h.memory.addDevice(b, a.staging)
	}
	return h
}

func (s *served) addDevice(b []byte, on *staging.Device) *core.Region {
	return s.addRange(core.Range{Addr: sockio.AddressOf(b), Length: uint64(len(b))}, true, on)
}

// holdCopies keeps copies from being done until the test calls release, or ends.
func (a *accelerator) holdCopies() (release func()) {
	set := func(hold bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.hold = hold
		a.held.Broadcast()
	}
	set(true)
	release = func() { set(false) }
	a.t.Cleanup(release)
	return release
}

// failCopies has copies fail that fault says so about.
func (a *accelerator) failCopies(fault func(device.Kind, device.Copy) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = fault
}

func (a *accelerator) count(kind device.Kind) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.copies[kind]
}

// waitForACopy waits until one has been asked for.
func (a *accelerator) waitForACopy() {
	a.t.Helper()
	require.Eventually(a.t, func() bool {
		return a.count(device.HostToDevice)+a.count(device.DeviceToHost)+a.count(device.WithinDevice) > 0
	}, tcptest.Patience, time.Millisecond)
}

func (a *accelerator) NewStream() (device.Stream, error) {
	s, err := a.Device.NewStream()
	return &acceleratorStream{s, a}, err
}

type acceleratorStream struct {
	device.Stream
	on *accelerator
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

func (a *accelerator) admit(kind device.Kind, c device.Copy) error {
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
