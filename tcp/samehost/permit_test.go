package samehost

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// permitPair is a permit as its two sides have it.
func permitPair(t testing.TB) (initiator, target *Permit) {
	t.Helper()
	initiator, file, err := NewPermit()
	require.NoError(t, err)
	defer sockio.CloseFile(file)
	target, err = OpenPermit(file, initiator.At)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, initiator.Close())
		require.NoError(t, target.Close())
	})
	return initiator, target
}

func never() bool { return false }

func TestNothingIsCopiedByAPermitThatWasRevoked(t *testing.T) {
	initiator, target := permitPair(t)
	for range 3 {
		require.True(t, target.begin())
		target.end()
	}
	require.True(t, initiator.Revoke(0, never))
	require.False(t, target.begin())
	require.True(t, initiator.Revoke(0, never), "once more")
}

func TestRevokingWaitsForTheCopyThatIsUnderWay(t *testing.T) {
	initiator, target := permitPair(t)
	require.True(t, target.begin())
	require.False(t, initiator.Revoke(time.Millisecond, never))
	revoked := make(chan bool)
	go func() { revoked <- initiator.Revoke(tcptest.Patience, never) }()
	for target.word().Load() != permitAwaited {
		runtime.Gosched()
	}
	target.end()
	require.True(t, <-revoked)
	require.False(t, target.begin())
}

func TestRevokingEndsWithTheProcessThatCopies(t *testing.T) {
	initiator, target := permitPair(t)
	require.True(t, target.begin())
	require.True(t, initiator.Revoke(tcptest.Patience, func() bool { return true }))
}

func TestAStateThatNobodyWritesIsWaitedForNoLongerThanAnyOther(t *testing.T) {
	initiator, target := permitPair(t)
	target.word().Store(77)
	require.False(t, initiator.Revoke(time.Millisecond, never))
	target.end()
	require.True(t, initiator.Revoke(tcptest.Patience, never))
}

func TestNoCopyAndNoRevocationAreBothFirst(t *testing.T) {
	for range 1000 {
		initiator, target := permitPair(t)
		var copying atomic.Bool
		var both sync.WaitGroup
		both.Go(func() {
			if target.begin() {
				copying.Store(true)
				runtime.Gosched()
				copying.Store(false)
				target.end()
			}
		})
		require.True(t, initiator.Revoke(tcptest.Patience, never))
		require.False(t, copying.Load())
		both.Wait()
	}
}

func TestAPermitThatCouldBeCutShortIsNotMapped(t *testing.T) {
	for _, length := range []int64{0, permitSize - 1, permitSize, 2 * permitSize} {
		file, err := unix.MemfdCreate("permit", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		require.NoError(t, err)
		defer sockio.CloseFile(file)
		require.NoError(t, unix.Ftruncate(file, length))
		_, err = OpenPermit(file, 0)
		require.ErrorContains(t, err, "not sealed")
		_, err = unix.FcntlInt(uintptr(file), unix.F_ADD_SEALS, permitSeals)
		require.NoError(t, err)
		if length != permitSize {
			_, err = OpenPermit(file, 0)
			require.ErrorContains(t, err, "bytes")
		}
	}
	plain, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer plain.Close()
	_, err = OpenPermit(int(plain.Fd()), 0)
	require.Error(t, err)
}

func TestAPermitIsOfTheProcessThatHasItMapped(t *testing.T) {
	_, target := permitPair(t)
	here := thisProcess(t)
	require.True(t, target.IsOf(here))
	require.False(t, target.IsOf(&Process{id: 1, file: here.file}))
	for _, at := range []uintptr{hostmem.AddressOf(tcptest.Mapped(t, permitSize)), 0} {
		target.At = at
		require.False(t, target.IsOf(here))
	}
}
