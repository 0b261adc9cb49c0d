// Package drivertest has what tests of vendors' devices share. They run on the simulator that the test uses: see
// tests/simtest.
package drivertest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// Enough is the timeout of waits that must succeed.
const Enough = 20 * time.Second

// Locked runs f on an OS thread of its own.
func Locked(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// Open returns a simulated device.
func Open(t testing.TB, index int) device.Device {
	t.Helper()
	d, err := simtest.Runtime(t).Open(index)
	require.NoError(t, err)
	return d
}

// OnThread runs f on an OS thread of its own, to which the device is bound.
func OnThread(t testing.TB, d device.Device, f func()) {
	t.Helper()
	Locked(func() {
		require.NoError(t, d.Bind())
		defer func() { require.NoError(t, d.Unbind()) }()
		f()
	})
}

// AddressOf is hostmem.AddressOf.
func AddressOf(memory []byte) uintptr { return hostmem.AddressOf(memory) }

// Fill writes bytes that depend on the seed.
func Fill(b []byte, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
}

// Event is an event of the device, until release. Called on a bound thread.
func Event(t testing.TB, d device.Device) (e device.Event, release func()) {
	t.Helper()
	e, err := d.NewEvent()
	require.NoError(t, err)
	return e, func() { require.NoError(t, e.Close()) }
}

// BenchSize is the length of both memories of a Bench, in bytes.
const BenchSize = 1 << 20

// Bench is a device with memory and a stream, on the test's thread.
type Bench struct {
	Device device.Device
	Host   []byte // page-locked
	Memory uintptr
	Stream device.Stream
}

// OnBench runs f on a thread with a Bench, which must be released without an error.
func OnBench(t testing.TB, d device.Device, f func(b *Bench)) {
	t.Helper()
	OnThread(t, d, func() {
		host, err := d.AllocatePinned(BenchSize)
		require.NoError(t, err)
		defer func() { require.NoError(t, d.FreePinned(host)) }()
		memory, err := d.Allocate(BenchSize)
		require.NoError(t, err)
		defer func() { require.NoError(t, d.Free(memory)) }()
		s, err := d.NewStream()
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Close()) }()
		f(&Bench{d, unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&host))), BenchSize), memory, s})
	})
}

// Out copies n bytes from the device's memory to the same offset of the host's, and In the other way.
func (b *Bench) Out(offset, n int) device.Copy {
	return device.Copy{Dst: AddressOf(b.Host) + uintptr(offset), Src: b.Memory + uintptr(offset), Length: uint64(n)}
}

func (b *Bench) In(offset, n int) device.Copy {
	c := b.Out(offset, n)
	return device.Copy{Dst: c.Src, Src: c.Dst, Length: c.Length}
}

// Copy makes the copies and waits for them.
func (b *Bench) Copy(t testing.TB, kind device.Kind, copies ...device.Copy) {
	t.Helper()
	issued, err := b.Stream.Copy(kind, copies)
	require.NoError(t, err)
	require.Equal(t, len(copies), issued)
	require.NoError(t, b.Stream.Drain(Enough))
}

// Record queues copies out of the device, and the event behind them.
func (b *Bench) Record(t testing.TB, e device.Event, copies ...device.Copy) {
	t.Helper()
	_, err := b.Stream.Copy(device.DeviceToHost, copies)
	require.NoError(t, err)
	require.NoError(t, b.Stream.Record(e))
}

// libraryOf is the variable with the path of the simulator in a fresh process, which has not opened it.
const libraryOf = "KVFERRY_TEST_LIBRARY"

// FreshLibrary is the path of the simulator in a fresh process, and "" in others.
func FreshLibrary() string { return os.Getenv(libraryOf) }

// Fresh returns whether this is a process for the test alone, which has not opened the vendor's library. If not, Fresh runs
// the test in such a process, where it must pass. With loaderFinds, the loader finds the library there.
func Fresh(t *testing.T, loaderFinds bool) bool {
	t.Helper()
	if FreshLibrary() != "" {
		return true
	}
	library, path := simtest.Library(t), ""
	if loaderFinds {
		path = filepath.Dir(library)
	}
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	child := exec.Command(os.Args[0], "-test.run="+pattern, "-test.count=1")
	child.Env = append(os.Environ(), libraryOf+"="+library, "LD_LIBRARY_PATH="+path)
	output, err := child.CombinedOutput()
	require.NoError(t, err, "%s", output)
	require.Contains(t, string(output), "PASS")
	return false
}

// Text puts the addresses of a copy into a format.
func Text(format string, c device.Copy) string { return fmt.Sprintf(format, c.Src, c.Dst) }
