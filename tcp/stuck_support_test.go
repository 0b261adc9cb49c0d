package tcp

import (
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// absent is memory whose pages do not come, as those of a file system that hangs: system calls that touch it sleep. So
// would goroutines, and the collector with them, so the test does not touch it before it calls come.
type absent struct {
	t      testing.TB
	memory []byte
	fault  int // descriptor of userfaultfd(2)
	come   func()
}

func withhold(t testing.TB, length int) *absent {
	t.Helper()
	const (
		api      = 0xc018aa3f // UFFDIO_API
		register = 0xc020aa00 // UFFDIO_REGISTER
		missing  = 1          // UFFDIO_REGISTER_MODE_MISSING
	)
	a := &absent{t: t, memory: mapped(t, length)}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		t.Skipf("userfaultfd, which makes pages that do not come, is not allowed: %v", errno)
	}
	a.fault = int(fd)
	a.come = sync.OnceFunc(func() { require.NoError(t, unix.Close(a.fault)) }) // wakes who waits: the memory is like any other
	t.Cleanup(a.come)
	a.ioctl(api, &struct{ api, features, ioctls uint64 }{api: 0xaa})
	a.ioctl(register, &struct{ start, length, mode, ioctls uint64 }{uint64(addressOf(a.memory)), uint64(length), missing, 0})
	return a
}

func (a *absent) ioctl(request uintptr, argument any) {
	a.t.Helper()
	at := (*[2]unsafe.Pointer)(unsafe.Pointer(&argument))[1]
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(a.fault), request, uintptr(at))
	require.Zero(a.t, errno, "ioctl %#x: %v", request, errno)
}

// waitForTouch returns when something sleeps on a page.
func (a *absent) waitForTouch() {
	a.t.Helper()
	require.Eventually(a.t, func() bool {
		event := make([]byte, 32)
		n, _ := unix.Read(a.fault, event)
		return n == len(event)
	}, patience, time.Millisecond, "nothing touches the memory")
}
