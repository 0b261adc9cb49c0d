// Package hostmemtest has memory whose pages do not come until the test says so.
package hostmemtest

import (
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// watchdog ends a process by SIGTERM after half a minute: the process of the test may be unable to, which is what the
// tests are about.
const watchdog = "sleep 30; kill -TERM $0"

// Missing is memory outside the Go heap of which no page comes before Release: who touches one waits.
type Missing struct {
	Memory []byte

	holder   *exec.Cmd // has the only descriptor of the userfaultfd, and prints a message when a thread waits for a page
	faults   io.ReadCloser
	watchdog *exec.Cmd
}

// New maps memory of at least so many bytes. It skips the test where the system does not allow that, or fails it where everything must run: in CI,
// or with KVFERRY_REQUIRE_ALL=1. Pages are held back for half a minute at most; a test that ends then has failed.
func New(t testing.TB, length int) *Missing {
	t.Helper()
	memory := reserve(t, length)
	m := &Missing{Memory: memory, holder: exec.Command("cat")}
	holdBack := register(t, memory)
	defer holdBack.Close()
	m.holder.Stdin = holdBack
	var err error
	m.faults, err = m.holder.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, m.holder.Start())
	m.watchdog = exec.Command("sh", "-c", watchdog, strconv.Itoa(m.holder.Process.Pid))
	m.watchdog.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // to be killed with its sleep
	require.NoError(t, m.watchdog.Start())
	t.Cleanup(func() { m.Release(t) })
	return m
}

// reserve maps memory where there was none in this process before: at such an address nothing was seen a moment ago.
func reserve(t testing.TB, length int) []byte {
	t.Helper()
	size := roundUp(length, os.Getpagesize())
	place := lowest + uintptr(taken.Add(int64(roundUp(size, apart)))) - uintptr(roundUp(size, apart))
	const access, kind = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANON | unix.MAP_FIXED_NOREPLACE
	addr, err := unix.MmapPtr(-1, 0, *(*unsafe.Pointer)(unsafe.Pointer(&place)), uintptr(size), access, kind)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.MunmapPtr(addr, uintptr(size))) })
	return unsafe.Slice((*byte)(addr), size)
}

const (
	lowest = 0x4000_0000_0000 // between the Go heap and the libraries
	apart  = 1 << 20          // a multiple of the granules in which memory is looked at
)

// taken is how many bytes from lowest on were ever mapped.
var taken atomic.Int64

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// register opens a userfaultfd for the memory. When its last descriptor is closed the pages come, of zeros.
func register(t testing.TB, memory []byte) *os.File {
	t.Helper()
	const (
		api           = 0xaa
		ioctlAPI      = 0xc018aa3f
		ioctlRegister = 0xc020aa00
		missingPages  = 1
	)
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		unavailable(t, "pages cannot be held back here: userfaultfd wants root, or vm.unprivileged_userfaultfd=1: "+errno.Error())
	}
	file := os.NewFile(fd, "userfaultfd")
	hello := struct{ api, features, ioctls uint64 }{api: api}
	require.Zero(t, ioctl(fd, ioctlAPI, unsafe.Pointer(&hello)))
	what := struct{ start, length, mode, ioctls uint64 }{
		uint64(uintptr(unsafe.Pointer(unsafe.SliceData(memory)))), uint64(len(memory)), missingPages, 0}
	require.Zero(t, ioctl(fd, ioctlRegister, unsafe.Pointer(&what)))
	return file
}

func ioctl(fd, number uintptr, argument unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, number, uintptr(argument))
	return errno
}

func unavailable(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" || os.Getenv("KVFERRY_REQUIRE_ALL") == "1" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// AwaitFault waits until a thread waits for a page.
func (m *Missing) AwaitFault(t testing.TB) {
	t.Helper()
	message := make([]byte, 32)
	_, err := io.ReadFull(m.faults, message)
	require.NoError(t, err)
}

// Collect makes Go's garbage collector stop every thread that runs Go code, while a thread waits for a page. If the
// whole process stops, it stops until the pages come without Release, and the test fails.
func (*Missing) Collect() { runtime.GC() }

// Release makes the kernel provide the pages, as zeros. A second call does nothing.
func (m *Missing) Release(t testing.TB) {
	t.Helper()
	if m.holder.ProcessState != nil {
		return
	}
	_ = m.holder.Process.Kill()
	_ = m.holder.Wait()
	_ = syscall.Kill(-m.watchdog.Process.Pid, syscall.SIGKILL)
	_ = m.watchdog.Wait()
	ended := m.holder.ProcessState.Sys().(syscall.WaitStatus)
	require.Equal(t, syscall.SIGKILL, ended.Signal(), "the process stood still until the pages came without Release")
}
