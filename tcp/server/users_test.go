package server

import (
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"

	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/samehost"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// dialAs connects to the socket for peers on this host as another user.
func (h *harness) dialAs(user uintptr) *tcptest.Client {
	h.t.Helper()
	dialed := make(chan *net.UnixConn)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocks it: the thread, which has become another user's, ends with the goroutine
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, user, user, user); errno != 0 {
			failed <- errno
			close(dialed)
			return
		}
		conn, err := net.DialUnix("unix", nil, samehost.Address(h.localName))
		failed <- err
		dialed <- conn
	}()
	conn := <-dialed
	require.NoError(h.t, <-failed)
	return tcptest.NewClient(h.t, conn)
}

func TestAnotherUserOfTheHostIsServedNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{}, memory)
	c := h.dialAs(65534)
	_, _ = c.Conn.Write(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	_, err := c.Conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	h.waitForLog("refused a connection on this host")
	require.Equal(t, make([]byte, 4096), memory)
	h.memory.mu.Lock()
	require.Zero(t, h.memory.pinned)
	h.memory.mu.Unlock()

	own := h.dialSocket() // the listener goes on
	own.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	own.ExpectStatus(wire.StatusOK)
}
