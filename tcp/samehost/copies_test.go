package samehost

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
	"time"
	"unsafe"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// thisProcess is the test's own, as if it was at the other end of a socket.
func thisProcess(t testing.TB) *Process {
	t.Helper()
	file, err := unix.PidfdOpen(os.Getpid(), 0)
	require.NoError(t, err)
	p := &Process{id: os.Getpid(), file: file}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// proofIn is a proof that this process gives.
func proofIn(t testing.TB) Proof {
	memory := tcptest.Mapped(t, len(proofBytes{}))
	for i := range memory {
		memory[i] = byte(rand.Int())
	}
	return Proof{at: hostmem.AddressOf(memory), length: uint64(len(memory)), expected: proofBytes(memory)}
}

func TestNothingIsFetchedFromAProcessThatCannotBeSeen(t *testing.T) {
	from, to := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(from, 1)
	f := NewCopies(NewCopyLimiter(1, nil))
	f.Add(hostmem.AddressOf(to), hostmem.AddressOf(from), 4096)
	require.ErrorIs(t, f.Run(nil, nil, proofIn(t)), ErrOutOfReach)
	require.NoError(t, f.Run(thisProcess(t), nil, proofIn(t)))
	require.Equal(t, from, to)
}

func TestTheProcessorIsYieldedWhenTheYieldBudgetIsUsedUp(t *testing.T) {
	var s yieldBudget
	s.add(yieldBytes - 1)
	require.EqualValues(t, yieldBytes-1, s.bytes)
	s.add(1)
	require.Zero(t, s.bytes)
	s.add(3 * yieldBytes)
	require.Zero(t, s.bytes)
}

func TestLongPayloadArrivesInStepsWhileShortTransfersAreExpected(t *testing.T) {
	lengths := []int{1, shortStep, 4096, shortStep - 1, 3*shortStep + 5, shortStep / 2, shortStep / 2, 1, shortStep + 1}
	from, to := tcptest.Mapped(t, 8*shortStep), tcptest.Mapped(t, 8*shortStep)
	tcptest.Fill(from, 1)
	limiter := NewCopyLimiter(1, nil)
	limiter.expect()
	f := NewCopies(limiter)
	at := 0
	for _, length := range lengths {
		f.Add(hostmem.AddressOf(to[at:]), hostmem.AddressOf(from[at:]), uint64(length))
		at += length + 3
	}
	require.NoError(t, f.Run(thisProcess(t), nil, proofIn(t)))
	at = 0
	for _, length := range lengths {
		require.True(t, bytes.Equal(from[at:at+length], to[at:at+length]), length)
		require.Equal(t, make([]byte, 3), to[at+length:at+length+3])
		at += length + 3
	}
}

func TestAStepThatCannotBeMadeFailsTheWhole(t *testing.T) {
	to := tcptest.Mapped(t, 3*shortStep)
	limiter := NewCopyLimiter(1, nil)
	limiter.expect()
	for _, gone := range []int{0, shortStep, 2 * shortStep} {
		for _, each := range []int{shortStep, 3 * shortStep} {
			from := tcptest.Mapped(t, 3*shortStep)
			tcptest.Unmap(t, from[gone:gone+4096])
			f := NewCopies(limiter)
			for at := 0; at < len(to); at += each {
				f.Add(hostmem.AddressOf(to[at:]), hostmem.AddressOf(from[at:]), uint64(each))
			}
			require.ErrorIs(t, f.Run(thisProcess(t), nil, proofIn(t)), ErrOutOfReach, "%d %d", gone, each)
		}
	}
}

// ended is a process that has ended. Its parent has asked for its end, unless that waits for the end of the test.
func ended(t *testing.T, waits bool) *Process {
	child, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	require.NoError(t, err)
	file, err := unix.PidfdOpen(child.Pid, 0)
	require.NoError(t, err)
	p := &Process{id: child.Pid, file: file}
	reap := func() {
		_, err := child.Wait()
		require.NoError(t, err)
	}
	if waits {
		require.Eventually(t, func() bool { return !p.Lives() }, tcptest.Patience, time.Millisecond)
		t.Cleanup(reap)
	} else {
		reap()
	}
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func TestNothingIsCopiedFromAProcessThatHasEndedAndNothingIsOverwritten(t *testing.T) {
	from, to := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(from, 1)
	for _, lately := range []bool{false, true} {
		for _, waits := range []bool{false, true} {
			tcptest.Fill(to, 2)
			who := ended(t, waits)
			require.False(t, who.Lives())
			require.Equal(t, waits, who.hasItsID())
			if lately { // it was found alive a moment before
				who.alive.Store(uint64(hostmem.Now()))
			} else {
				who.id = os.Getpid() // another process has got the id
				who.alive.Store(0)
			}
			f := NewCopies(NewCopyLimiter(1, nil))
			f.Add(hostmem.AddressOf(to), hostmem.AddressOf(from), 4096)
			require.ErrorIs(t, f.Run(who, nil, proofIn(t)), errProcessEnded)
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
		f, by := NewCopies(NewCopyLimiter(1, nil)), proofIn(t)
		f.Add(hostmem.AddressOf(to), hostmem.AddressOf(from), 1000)
		f.Add(hostmem.AddressOf(to)+1000, hostmem.AddressOf(from), 500)
		if partly {
			f.Add(hostmem.AddressOf(to)+2000, 4096, 1000) // there is nothing
		} else {
			by.expected[0]++ // the other process has something else there
		}
		for range 100 { // the clock may go on before the copy
			tcptest.Fill(to, 2)
			who.alive.Store(uint64(hostmem.Now()))
			require.ErrorIs(t, f.Run(who, nil, by), errProcessEnded)
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
	f, by := NewCopies(NewCopyLimiter(1, nil)), proofIn(t)
	f.Add(hostmem.AddressOf(to), hostmem.AddressOf(from), 4096)
	require.NoError(t, f.Run(thisProcess(t), nil, by))
	by.expected[by.length-1]++
	require.ErrorIs(t, f.Run(thisProcess(t), nil, by), ErrUnproven)
	by.at = 0
	require.ErrorIs(t, f.Run(thisProcess(t), nil, by), ErrOutOfReach)
}

// A child that was forked has this process's memory at the same addresses, and may get its id one day.
func TestAForkedChildProvesNeitherAGrantNorAPermit(t *testing.T) {
	engine, err := core.New(core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: core.DefaultConfig(), Log: zap.NewNop()})
	require.NoError(t, err)
	defer func() { require.NoError(t, engine.Close()) }()
	epoch := engine.Memory().Epoch()
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
	child := &Process{id: int(pid), file: file}
	defer child.Close()
	copied := func(from *Process, by Proof) error {
		f := NewCopies(NewCopyLimiter(1, nil))
		f.Add(hostmem.AddressOf(tcptest.Mapped(t, 4096)), hostmem.AddressOf(memory), 4096)
		return f.Run(from, nil, by)
	}
	require.NoError(t, copied(thisProcess(t), proofOf(&g)))
	require.ErrorIs(t, copied(child, proofOf(&g)), ErrUnproven)
	require.NoError(t, copied(thisProcess(t), permit.Proof()))
	require.ErrorIs(t, copied(child, permit.Proof()), ErrOutOfReach)
}
