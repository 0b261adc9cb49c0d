package client

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/samehost"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// connectionWithPermit is a connection to this process, and the state of its permit, which is there until it is released.
func connectionWithPermit(t *testing.T) (*connection, *atomic.Uint32) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	files := [2]*os.File{os.NewFile(uintptr(ends[0]), "near"), os.NewFile(uintptr(ends[1]), "far")}
	t.Cleanup(func() { _ = files[1].Close() })
	conn, err := net.FileConn(files[0])
	require.NoError(t, err)
	require.NoError(t, files[0].Close())
	process, err := samehost.ProcessBehind(conn.(*net.UnixConn))
	require.NoError(t, err)
	permit, file, err := samehost.NewPermit()
	require.NoError(t, err)
	require.NoError(t, unix.Close(file))
	state := (*atomic.Uint32)(unsafe.Add(unsafe.Pointer(nil), permit.At))
	return &connection{Socket: socketOf(t, conn.(*net.UnixConn)), process: process, permit: permit}, state
}

// A lane is given up because a system call of it does not return, and the target is stopped in the middle of a copy of the
// same memory. The end of the system call alone does not make the memory free.
func TestMemoryThatTheTargetMayStillCopyIsNotLetGoWhenAStuckSystemCallReturns(t *testing.T) {
	tcptest.Waits(t, core.Waits{Grace: 10 * time.Millisecond, Ending: 100 * time.Millisecond})
	_, e, memory, local, id := sameHost(t, 4096)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, local, id, memory)))
	require.NoError(t, e.Register(hostmem.AddressOf(local), 4096, "cpu:0", true))
	conn, state := connectionWithPermit(t)
	const taken, revoked = 1, 3
	state.Store(taken)

	conn.peer = onlyPeer(t, e)
	s := transportOf(t, e).fence.holdStuck(conn, []piece{{op: core.Write, local: hostmem.AddressOf(local), length: 4096}})
	s.quarantine(nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.returned(errors.New("given up"))
	}()
	require.ErrorIs(t, e.Unregister(hostmem.AddressOf(local)), core.ErrInUse)
	select {
	case <-ended:
		require.Fail(t, "the memory was let go during a copy")
	default:
	}
	state.Store(revoked)
	<-ended
	require.Eventually(t, func() bool { return e.Unregister(hostmem.AddressOf(local)) == nil }, tcptest.Patience, time.Millisecond)
}
