package tcp

import (
	"bytes"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// permitPair is a permit as its two sides have it.
func permitPair(t testing.TB) (initiator, target *permit) {
	t.Helper()
	initiator, file, err := newPermit()
	require.NoError(t, err)
	defer sockio.CloseFile(file)
	target, err = openPermit(file, initiator.at)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, initiator.close())
		require.NoError(t, target.close())
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
	require.True(t, initiator.revoke(0, never))
	require.False(t, target.begin())
	require.True(t, initiator.revoke(0, never), "once more")
}

func TestRevokingWaitsForTheCopyThatIsUnderWay(t *testing.T) {
	initiator, target := permitPair(t)
	require.True(t, target.begin())
	require.False(t, initiator.revoke(time.Millisecond, never))
	revoked := make(chan bool)
	go func() { revoked <- initiator.revoke(tcptest.Patience, never) }()
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
	require.True(t, initiator.revoke(tcptest.Patience, func() bool { return true }))
}

func TestAStateThatNobodyWritesIsWaitedForNoLongerThanAnyOther(t *testing.T) {
	initiator, target := permitPair(t)
	target.word().Store(77)
	require.False(t, initiator.revoke(time.Millisecond, never))
	target.end()
	require.True(t, initiator.revoke(tcptest.Patience, never))
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
		require.True(t, initiator.revoke(tcptest.Patience, never))
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
		_, err = openPermit(file, 0)
		require.ErrorContains(t, err, "not sealed")
		_, err = unix.FcntlInt(uintptr(file), unix.F_ADD_SEALS, permitSeals)
		require.NoError(t, err)
		if length != permitSize {
			_, err = openPermit(file, 0)
			require.ErrorContains(t, err, "bytes")
		}
	}
	plain, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer plain.Close()
	_, err = openPermit(int(plain.Fd()), 0)
	require.Error(t, err)
}

func TestAPermitIsOfTheProcessThatHasItMapped(t *testing.T) {
	_, target := permitPair(t)
	here := thisProcess(t)
	require.True(t, target.isOf(here))
	require.False(t, target.isOf(&process{id: 1, file: here.file}))
	for _, at := range []uintptr{sockio.AddressOf(tcptest.Mapped(t, permitSize)), 0} {
		target.at = at
		require.False(t, target.isOf(here))
	}
}

func TestASessionCopiesNothingAfterThePermitWasRevoked(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 8192), tcptest.Mapped(t, 4096)
	tcptest.Fill(payload, 1)
	h := serve(t, targetOptions{}, memory)
	c, p := h.dialWithPermit()
	c.send(writeByAddress(sockio.AddressOf(memory), payload))
	c.expectStatus(wire.StatusOK)
	require.True(t, p.revoke(tcptest.Patience, never))
	_, err := c.conn.Write(writeByAddress(sockio.AddressOf(memory)+4096, payload))
	require.NoError(t, err)
	h.waitForSessions(0)
	require.Equal(t, make([]byte, 4096), memory[4096:])
}

func TestNothingIsCopiedForAPeerThatSentNoPermit(t *testing.T) {
	memory, payload := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	h := serve(t, targetOptions{}, memory)
	for _, greets := range []bool{false, true} {
		c := h.dialSocket()
		if greets {
			require.Equal(t, wire.Answer{}, c.greet(wire.Hello{Number: 1}))
		}
		c.send(writeByAddress(sockio.AddressOf(memory), payload))
		c.expectStatus(wire.StatusOutOfReach)
		c.send(writeV2(sockio.AddressOf(memory), []byte("abc")))
		c.expectStatus(wire.StatusOK)
	}
}

// ended is a process that has ended. Its parent has asked for its end, unless that waits for the end of the test.
func ended(t *testing.T, waits bool) *process {
	child, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	require.NoError(t, err)
	file, err := unix.PidfdOpen(child.Pid, 0)
	require.NoError(t, err)
	p := &process{id: child.Pid, file: file}
	reap := func() {
		_, err := child.Wait()
		require.NoError(t, err)
	}
	if waits {
		require.Eventually(t, func() bool { return !p.lives() }, tcptest.Patience, time.Millisecond)
		t.Cleanup(reap)
	} else {
		reap()
	}
	t.Cleanup(func() { require.NoError(t, p.close()) })
	return p
}

func TestNothingIsCopiedFromAProcessThatHasEndedAndNothingIsOverwritten(t *testing.T) {
	from, to := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(from, 1)
	for _, lately := range []bool{false, true} {
		for _, waits := range []bool{false, true} {
			tcptest.Fill(to, 2)
			who := ended(t, waits)
			require.False(t, who.lives())
			require.Equal(t, waits, who.hasItsID())
			if lately { // it was found alive a moment before
				who.lived.Store(uint64(hostmem.Now()))
			} else {
				who.id = os.Getpid() // another process has got the id
				who.lived.Store(0)
			}
			f := newFetching()
			f.add(sockio.AddressOf(to), sockio.AddressOf(from), 4096)
			require.ErrorIs(t, f.run(who, nil, proofIn(t)), errProcessEnded)
			require.True(t, bytes.Equal(tcptest.Pattern(4096, 2), to))
		}
	}
}

func TestWhatWasCopiedFromAProcessWithTheIdOfOneThatHasEndedIsWipedAndNothingElse(t *testing.T) {
	from, to := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(from, 1)
	tcptest.Fill(to, 2)
	who := ended(t, false)
	who.id = os.Getpid()
	for _, partly := range []bool{false, true} {
		f, by := newFetching(), proofIn(t)
		f.add(sockio.AddressOf(to), sockio.AddressOf(from), 1000)
		f.add(sockio.AddressOf(to)+1000, sockio.AddressOf(from), 500)
		if partly {
			f.add(sockio.AddressOf(to)+2000, 4096, 1000) // there is nothing
		} else {
			by.expected[0]++ // the other process has something else there
		}
		for range 100 { // the clock may go on before the copy
			tcptest.Fill(to, 2)
			who.lived.Store(uint64(hostmem.Now()))
			require.ErrorIs(t, f.run(who, nil, by), errProcessEnded)
			if to[0] != tcptest.Pattern(1, 2)[0] {
				break
			}
		}
		require.True(t, bytes.Equal(make([]byte, 1500), to[:1500]))
		require.True(t, bytes.Equal(tcptest.Pattern(4096, 2)[1500:], to[1500:]))
	}
}

func TestCopiesWithoutTheExpectedProofAreNotValid(t *testing.T) {
	from, to := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	f, by := newFetching(), proofIn(t)
	f.add(sockio.AddressOf(to), sockio.AddressOf(from), 4096)
	require.NoError(t, f.run(thisProcess(t), nil, by))
	by.expected[by.length-1]++
	require.ErrorIs(t, f.run(thisProcess(t), nil, by), errUnproven)
	by.at = 0
	require.ErrorIs(t, f.run(thisProcess(t), nil, by), errOutOfReach)
}

// A READ that completes after the target's engine began to close has only bytes that were there before.
func TestNoMemoryIsGrantedOnceTheEngineIsBeingClosed(t *testing.T) {
	target, e, memory, local, id := neighbours(t, 64<<10, oneLane, fewRetries)
	for range 2 {
		completes(t, submit(t, e, ask(core.Read, local, id, memory)))
	}
	l := lanes(t, e)[0]
	require.True(t, l.fetches())
	install, closed := make(chan struct{}), make(chan error)
	go func() {
		_, _ = target.Install("slow", func(*core.Engine) (core.Transport, error) {
			close(install)
			<-closed // Close waits for this
			return nil, core.ErrClosed
		})
	}()
	<-install
	done := make(chan error)
	go func() { done <- target.Close() }()
	require.Eventually(t, func() bool { return target.Memory().Epoch().Load() == 0 }, tcptest.Patience, time.Millisecond)
	for range 3 {
		wait(t, submit(t, e, ask(core.Read, local, id, memory)))
		require.False(t, l.fetches())
	}
	close(closed)
	require.NoError(t, <-done)
	require.Zero(t, target.Memory().Epoch().Load())
}

// A child that was forked has this process's memory at the same addresses, and may get its id one day.
func TestAForkedChildProvesNeitherAGrantNorAPermit(t *testing.T) {
	epoch := engine(t).Memory().Epoch()
	g := wire.Grant{EpochAt: uint64(uintptr(unsafe.Pointer(epoch))), Epoch: epoch.Load()}
	permit, _ := permitPair(t)
	memory := tcptest.Mapped(t, 4096)
	tcptest.Fill(memory, 1)
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if pid == 0 && errno == 0 { // the child, which has none of Go's other threads
		for {
			_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	require.Zero(t, errno)
	defer func() {
		require.NoError(t, unix.Kill(int(pid), unix.SIGKILL))
		_, err := unix.Wait4(int(pid), nil, 0, nil)
		require.NoError(t, err)
	}()
	file, err := unix.PidfdOpen(int(pid), 0)
	require.NoError(t, err)
	child := &process{id: int(pid), file: file}
	defer child.close()
	copied := func(from *process, by proof) error {
		f := newFetching()
		f.add(sockio.AddressOf(tcptest.Mapped(t, 4096)), sockio.AddressOf(memory), 4096)
		return f.run(from, nil, by)
	}
	require.NoError(t, copied(thisProcess(t), proofOf(&g)))
	require.ErrorIs(t, copied(child, proofOf(&g)), errUnproven)
	require.NoError(t, copied(thisProcess(t), permit.proof()))
	require.ErrorIs(t, copied(child, permit.proof()), errOutOfReach)
}
