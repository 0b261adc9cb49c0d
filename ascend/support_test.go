package ascend_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"kvferry/ascend"
	"kvferry/core/device"
	"kvferry/internal/driver"
	"kvferry/sim/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// enough is for waits that are to succeed.
const enough = 20 * time.Second

// logged returns a runtime of that library, and what it warns of.
func logged(library string) (*driver.Runtime, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.WarnLevel)
	return ascend.New(library, zap.New(core)), logs
}

// open returns a simulated device.
func open(t *testing.T, index int) device.Device {
	t.Helper()
	d, err := simtest.Runtime(t).Open(index)
	require.NoError(t, err)
	return d
}

// onThread runs f on an OS thread of its own, to which the device is bound.
func onThread(t *testing.T, d device.Device, f func()) {
	t.Helper()
	locked(func() {
		require.NoError(t, d.Bind())
		defer func() { require.NoError(t, d.Unbind()) }()
		f()
	})
}

// locked runs f on an OS thread of its own.
func locked(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// pinned is page-locked memory of n bytes, until release. Called on a bound thread.
func pinned(t *testing.T, d device.Device, n int) (memory []byte, release func()) {
	t.Helper()
	addr, err := d.AllocatePinned(uint64(n))
	require.NoError(t, err)
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&addr))), n), func() { require.NoError(t, d.FreePinned(addr)) }
}

func addressOf(memory []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(memory))) }

// allocated is device memory of n bytes, until release. Called on a bound thread.
func allocated(t *testing.T, d device.Device, n int) (addr uintptr, release func()) {
	t.Helper()
	addr, err := d.Allocate(uint64(n))
	require.NoError(t, err)
	return addr, func() { require.NoError(t, d.Free(addr)) }
}

// stream is a stream of the device, until release. Called on a bound thread.
func stream(t *testing.T, d device.Device) (s device.Stream, release func()) {
	t.Helper()
	s, err := d.NewStream()
	require.NoError(t, err)
	return s, func() { require.NoError(t, s.Close()) }
}

// event is an event of the device, until release. Called on a bound thread.
func event(t *testing.T, d device.Device) (e device.Event, release func()) {
	t.Helper()
	e, err := d.NewEvent()
	require.NoError(t, err)
	return e, func() { require.NoError(t, e.Close()) }
}

// libraryOf is where a fresh process finds the simulator, which it has not opened.
const libraryOf = "KVFERRY_TEST_LIBRARY"

// fresh tells whether this is a process of its own for the test, with no AscendCL in it. Where it is not, it makes one,
// in which the test must pass.
func fresh(t *testing.T) bool {
	t.Helper()
	return freshWith(t, func(string) string { return "LD_LIBRARY_PATH=" })
}

// freshOnLoaderPath is fresh, with the simulator where the loader finds it.
func freshOnLoaderPath(t *testing.T) bool {
	t.Helper()
	return freshWith(t, func(library string) string { return "LD_LIBRARY_PATH=" + filepath.Dir(library) })
}

func freshWith(t *testing.T, variable func(library string) string) bool {
	t.Helper()
	if os.Getenv(libraryOf) != "" {
		return true
	}
	library := simtest.Library(t)
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	child.Env = append(os.Environ(), libraryOf+"="+library, variable(library))
	output, err := child.CombinedOutput()
	require.NoError(t, err, "%s", output)
	require.Contains(t, string(output), "PASS")
	return false
}

// fmtCopy puts the addresses of a copy into a text.
func fmtCopy(format string, c device.Copy) string { return fmt.Sprintf(format, c.Src, c.Dst) }
