package client

import (
	"sync/atomic"
	"testing"
	"unsafe"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/samehost"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// holding counts what is held.
type holding struct{ atomic.Int32 }

func (h *holding) Hold(core.Range, string) (release func()) {
	h.Add(1)
	return func() { h.Add(-1) }
}

// The target is stopped in the middle of a copy. This test has the memory that the two processes share.
func TestMemoryIsHeldAsLongAsATargetMayCopyItAlsoWhenTheEngineIsClosed(t *testing.T) {
	const taken, revoked = 1, 3 // as a target writes when a copy begins, and when one ends that is waited for
	for _, closed := range []bool{false, true} {
		ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		process, err := samehost.PeerProcess(ends[0]) // this one
		require.NoError(t, err)
		permit, file, err := samehost.NewPermit()
		require.NoError(t, err)
		page, err := unix.Mmap(file, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		require.NoError(t, err)
		word := (*atomic.Uint32)(unsafe.Pointer(&page[0]))
		word.Store(taken)

		var memory holding
		config := core.DefaultConfig()
		client := New(Options{Config: &config, Processors: testProcessors, Log: zap.NewNop(), Memory: &memory})
		conn := &connection{process: process, permit: permit, peer: newPeer(client, &core.Segment{})}
		require.False(t, client.fence.revoke(conn, []piece{{length: 1}}))
		require.EqualValues(t, 1, memory.Load())
		if closed {
			client.cancel()
		} else {
			word.Store(revoked)
		}
		tcptest.Returns(t, "the wait for the copy", client.running.Wait)
		require.Equal(t, closed, memory.Load() == 1)
		client.cancel()
		for _, fd := range append(ends[:], file) {
			require.NoError(t, unix.Close(fd))
		}
		require.NoError(t, unix.Munmap(page))
	}
}
