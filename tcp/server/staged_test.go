package server

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zapcore"
)

// stagedLengths are those of host memory, and around blocks of 512 KiB.
var stagedLengths = append([]int{loadBytes - 1, loadBytes + 1, 512<<10 - 1, 512 << 10, 512<<10 + 1, 3<<19 + 7}, lengths...)

func TestWriteToADeviceIsAcknowledgedWhenItIsInMemory(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(4 << 20)
	c := serveDevice(a, Options{}, memory).dial()
	for i, length := range stagedLengths {
		payload := tcptest.Pattern(length, byte(i))
		at := 1 + 37*i
		c.Send(tcptest.WriteV2(hostmem.AddressOf(memory)+uintptr(at), payload))
		c.ExpectStatus(wire.StatusOK)
		require.True(t, bytes.Equal(payload, memory[at:at+length]), length)
	}
}

func TestReadFromADeviceAnswersStatusAndPayload(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(4 << 20)
	copy(memory, tcptest.Pattern(len(memory), 1))
	c := serveDevice(a, Options{}, memory).dial()
	for i, length := range stagedLengths {
		at := 1 + 37*i
		c.Send(tcptest.ReadV2(memory[at : at+length]))
		c.ExpectStatus(wire.StatusOK)
		c.Expect(memory[at : at+length])
	}
}

func TestVersion1RequestsForADevice(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(4 << 20)
	h := serveDevice(a, Options{}, memory)
	c := h.dial()
	for i, length := range stagedLengths {
		payload := tcptest.Pattern(length, byte(i))
		c.Send(tcptest.WriteV1(hostmem.AddressOf(memory)+5, payload), tcptest.ReadV1(memory[5:5+length]))
		c.Expect(payload)
		confirmed := h.dial()
		confirmed.Send(tcptest.WriteV1(hostmem.AddressOf(memory), payload))
		require.NoError(t, confirmed.Conn.CloseWrite())
		confirmed.ExpectEnd()
		require.True(t, bytes.Equal(payload, memory[:length]), length)
	}
}

func TestNothingIsConfirmedBeforeTheCopyIsDone(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(1 << 20)
	for name, version1 := range map[string]bool{"by a status": false, "by the end of the connection": true} {
		t.Run(name, func(t *testing.T) {
			c := serveDevice(a, Options{}, memory).dial()
			release := a.HoldCopies()
			if version1 {
				c.Send(tcptest.WriteV1(hostmem.AddressOf(memory), []byte("abc")))
				require.NoError(t, c.Conn.CloseWrite())
			} else {
				c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
			}
			c.ExpectSilence()
			release()
			if !version1 {
				c.ExpectStatus(wire.StatusOK)
				require.NoError(t, c.Conn.CloseWrite())
			}
			c.ExpectEnd()
			require.Equal(t, "abc", string(memory[:3]))
			clear(memory)
		})
	}
}

func TestOnlyWhatDependsOnACopyWaitsForIt(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory, host := a.Memory(4096), tcptest.Mapped(t, 4096)
	h := serveDevice(a, Options{}, memory)
	h.memory.add(host, true)
	c := h.dial()
	release := a.HoldCopies()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(host), []byte("abc")), tcptest.WriteV2(hostmem.AddressOf(memory), []byte("def")), tcptest.ReadV2(host[:3]))
	c.ExpectStatus(wire.StatusOK)
	c.ExpectSilence()
	release()
	c.ExpectStatus(wire.StatusOK)
	c.ExpectStatus(wire.StatusOK)
	c.Expect([]byte("abc"))
}

func TestAnswersAreNotWithheldWhilePayloadForADeviceIsMissing(t *testing.T) {
	for _, length := range []int{100, loadBytes - 1, 1 << 20} {
		a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
		memory := a.Memory(2 << 20)
		c := serveDevice(a, Options{}, memory).dial()
		second := tcptest.WriteV2(hostmem.AddressOf(memory), tcptest.Pattern(length, 1))
		c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("first")), second[:wire.HeaderSize+length/2])
		c.ExpectStatus(wire.StatusOK)
		c.Send(second[wire.HeaderSize+length/2:])
		c.ExpectStatus(wire.StatusOK)
		require.True(t, bytes.Equal(tcptest.Pattern(length, 1), memory[:length]), length)
	}
}

func TestPayloadIsReceivedWhileEarlierPayloadIsCopied(t *testing.T) {
	const length = 512 << 10
	a := tcptest.Accelerate(t, tcptest.Blocks(16, length))
	memory := a.Memory(8 * length)
	h := serveDevice(a, Options{}, memory)
	c := h.dial()
	release := a.HoldCopies()
	for i := range turnsAhead {
		c.Send(tcptest.WriteV2(hostmem.AddressOf(memory)+uintptr(i*length), tcptest.Pattern(length, byte(i))))
	}
	require.Eventually(t, func() bool { return h.only().bytesIn.Load() == turnsAhead*length }, tcptest.Patience, time.Millisecond)
	release()
	for range turnsAhead {
		c.ExpectStatus(wire.StatusOK)
	}
}

// queued is how many turns the sender has.
func queued(s *session) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.staged == nil {
		return 0
	}
	return len(s.staged.queue)
}

func TestRequestsThatComeWhileTheSessionWaitsForAJobAreServed(t *testing.T) {
	const requests = 300
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(1 << 20)
	c := serveDevice(a, Options{}, memory).dial()
	for i := range requests {
		at, length := i*700, 1+i*7%600
		c.Send(tcptest.WriteV2(hostmem.AddressOf(memory[at:]), tcptest.Pattern(length, byte(i))))
		if i%3 > 0 { // one, two or three requests one soon after the other
			c.ExpectStatus(wire.StatusOK)
		}
		if i%3 == 2 {
			c.ExpectStatus(wire.StatusOK)
		}
	}
	for i := range requests {
		at, length := i*700, 1+i*7%600
		require.Equal(t, tcptest.Pattern(length, byte(i)), memory[at:at+length], "request %d", i)
	}
}

func TestReadsAreCopiedAheadOfWhatIsSent(t *testing.T) {
	const length = 512 << 10
	a := tcptest.Accelerate(t, tcptest.Blocks(16, length))
	memory := a.Memory(8 * length)
	h := serveDevice(a, Options{}, memory)
	c := h.dial()
	release := a.HoldCopies()
	c.Send(tcptest.ReadV2(memory))
	s := h.only()
	require.Eventually(t, func() bool { return queued(s) == turnsAhead }, tcptest.Patience, time.Millisecond)
	release()
	c.ExpectStatus(wire.StatusOK)
	c.Expect(memory)
}

func TestShortRequestsForADeviceShareJobs(t *testing.T) {
	const n, length, stride = 512, 4000, 8192
	a := tcptest.Accelerate(t, tcptest.Blocks(16, 2<<20))
	memory := a.Memory(n * stride)
	c := serveDevice(a, Options{}, memory).dial()
	payload := tcptest.Pattern(length, 3)
	release := a.HoldCopies()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), payload))
	a.WaitForACopy()
	var writes, reads [][]byte
	for i := 1; i < n; i++ {
		writes = append(writes, tcptest.WriteV2(hostmem.AddressOf(memory)+uintptr(i*stride), payload))
	}
	for i := range n {
		reads = append(reads, tcptest.ReadV2(memory[i*stride:][:length]))
	}
	c.Send(writes...)
	release()
	for range n {
		c.ExpectStatus(wire.StatusOK)
	}
	require.Less(t, a.Count(device.HostToDevice), n/4)
	c.Send(reads...)
	for range n {
		c.ExpectStatus(wire.StatusOK)
		c.Expect(payload)
	}
	require.Less(t, a.Count(device.DeviceToHost), n/32)
}

func TestReadOfADeviceGetsWhatWasThereBeforeAWriteThatFollowsIt(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(16, 512<<10))
	memory := a.Memory(1 << 20)
	before := tcptest.Pattern(len(memory), 1)
	copy(memory, before)
	c := serveDevice(a, Options{}, memory).dial()
	var requests [][]byte
	for i := range 100 {
		requests = append(requests, tcptest.ReadV2(memory[i*100:(i+1)*100]))
	}
	release := a.HoldCopies()
	c.Send(append(requests, tcptest.WriteV2(hostmem.AddressOf(memory)+50, make([]byte, 9000)), tcptest.ReadV2(memory[:10000]))...)
	a.WaitForACopy()
	release()
	for i := range 100 {
		c.ExpectStatus(wire.StatusOK)
		c.Expect(before[i*100 : (i+1)*100])
	}
	c.ExpectStatus(wire.StatusOK)
	c.ExpectStatus(wire.StatusOK)
	copy(before[50:], make([]byte, 9000))
	c.Expect(before[:10000])
}

func TestReadOfHostMemoryGetsWhatWasThereBeforeAWriteThatFollowsItWhileADeviceIsBusy(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory, host := a.Memory(4096), tcptest.Mapped(t, 4096)
	h := serveDevice(a, Options{}, memory)
	h.memory.add(host, true)
	before := tcptest.Pattern(len(host), 1)
	copy(host, before)
	c := h.dial()
	release := a.HoldCopies()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")), tcptest.ReadV2(host))
	a.WaitForACopy()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(host), []byte("abc")))
	c.ExpectSilence()
	release()
	c.ExpectStatus(wire.StatusOK)
	c.ExpectStatus(wire.StatusOK)
	c.Expect(before)
	c.ExpectStatus(wire.StatusOK)
	require.Equal(t, "abc", string(host[:3]))
}

// errInjected is what a failing copy reports.

func TestFailedCopyFailsItsRequestAfterThoseBeforeItAndServesNoneBehind(t *testing.T) {
	const length = 4096
	for op, kind := range map[core.Opcode]device.Kind{core.Write: device.HostToDevice, core.Read: device.DeviceToHost} {
		t.Run(op.String(), func(t *testing.T) {
			a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
			memory := a.Memory(64 * length)
			copy(memory, tcptest.Pattern(len(memory), 1))
			h := serveDevice(a, Options{}, memory)
			bad := hostmem.AddressOf(memory) + 20*length
			a.FailAround(kind, bad+17)
			c := h.dial()
			var requests [][]byte
			for i := 0; i < 64; i += 2 {
				b := memory[i*length:][:length]
				if op == core.Write {
					requests = append(requests, tcptest.WriteV2(hostmem.AddressOf(b), b))
				} else {
					requests = append(requests, tcptest.ReadV2(b))
				}
			}
			c.Send(requests...)
			for i := range 10 {
				c.ExpectStatus(wire.StatusOK)
				if op == core.Read {
					c.Expect(memory[2*i*length:][:length])
				}
			}
			c.ExpectStatus(wire.StatusFailed)
			c.ExpectEnd()
			require.NoError(t, c.Conn.Close())
			h.waitForSessions(0)
			line := h.waitForLog("data request failed")
			require.Equal(t, zapcore.WarnLevel, line.Level)
			fields := line.ContextMap()
			require.Equal(t, c.Conn.LocalAddr().String(), fields["peer"])
			require.Equal(t, fmt.Sprintf("%#x", bad), fields["address"])
			require.EqualValues(t, length, fields["length"])
			require.Contains(t, fields["reason"], tcptest.ErrInjected.Error())

			c = h.dial() // the others are asked for again
			c.Send(requests[11])
			c.ExpectStatus(wire.StatusOK)
		})
	}
}

func TestNothingBehindAFailedCopyIsAnswered(t *testing.T) {
	const length = loadBytes // a load of its own
	a := tcptest.Accelerate(t, tcptest.Blocks(8, 512<<10))
	memory := a.Memory(3 * length)
	a.FailAround(device.HostToDevice, hostmem.AddressOf(memory))
	h := serveDevice(a, Options{}, memory)
	c := h.dial()
	release := a.HoldCopies()
	for i := range 3 {
		c.Send(tcptest.WriteV2(hostmem.AddressOf(memory)+uintptr(i*length), make([]byte, length)))
	}
	s := h.only()
	require.Eventually(t, func() bool { return queued(s) == 3 }, tcptest.Patience, time.Millisecond)
	release()
	c.ExpectStatus(wire.StatusFailed)
	c.ExpectEnd()
}

func TestNothingIsSentAfterTheSenderHasFailed(t *testing.T) {
	h := serve(t, Options{})
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	peer, err := net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
	require.NoError(t, err)
	defer func() { _ = peer.Close() }()
	conn, err := listener.AcceptTCP()
	require.NoError(t, err)

	s := newSession(h.server, func() *sockio.Socket {
		s, err := sockio.New(conn, h.server.options.Processors)
		require.NoError(t, err)
		t.Cleanup(func() { _ = s.Close() })
		return s
	}(), nil)
	s.startStaging()
	s.mu.Lock()
	s.staged.failure = tcptest.ErrInjected
	s.mu.Unlock()
	s.turn.oweStatus(wire.StatusOK)
	require.ErrorIs(t, s.flush(), tcptest.ErrInjected)
	require.ErrorIs(t, s.endStaging(io.EOF), tcptest.ErrInjected)
	require.NoError(t, s.conn.Close())
	got, err := io.ReadAll(peer)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestFailedCopyOfAVersion1RequestResetsTheConnection(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(4096)
	a.FailCopies(func(device.Kind, device.Copy) error { return tcptest.ErrInjected })
	h := serveDevice(a, Options{}, memory)
	t.Run("WRITE", func(t *testing.T) {
		c := h.dial()
		c.Send(tcptest.WriteV1(hostmem.AddressOf(memory), []byte("abc")))
		_ = c.Conn.CloseWrite() // fails when the reset is here already
		c.ExpectReset()
	})
	t.Run("READ", func(t *testing.T) {
		c := h.dial()
		c.Send(tcptest.ReadV1(memory))
		c.ExpectReset()
	})
}

func TestReadThatFailsInTheMiddleIsCutOff(t *testing.T) {
	const block = 512 << 10
	a := tcptest.Accelerate(t, tcptest.Blocks(4, block))
	memory := a.Memory(4 * block)
	copy(memory, tcptest.Pattern(len(memory), 1))
	a.FailAround(device.DeviceToHost, hostmem.AddressOf(memory)+2*block+5)
	h := serveDevice(a, Options{}, memory)
	c := h.dial()
	c.Send(tcptest.ReadV2(memory))
	got, err := io.ReadAll(c.Conn)
	require.Error(t, err)
	require.LessOrEqual(t, len(got), wire.StatusSize+2*block)
	h.waitForLog("data request failed")
}

func TestWriteThatFailsInTheMiddleIsToldWhileItIsStillSent(t *testing.T) {
	const block = 512 << 10
	a := tcptest.Accelerate(t, tcptest.Blocks(4, block))
	memory := a.Memory(4 * block)
	a.FailAround(device.HostToDevice, hostmem.AddressOf(memory)+5)
	c := serveDevice(a, Options{}, memory).dial()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 4*block))[:2*block])
	c.ExpectStatus(wire.StatusFailed)
	c.ExpectEnd()
}

func TestCopiesThatFailOnceEndTheSessionWithoutAFalseAnswer(t *testing.T) {
	const n, length = 8, 4096
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(2 * n * length)
	copy(memory, tcptest.Pattern(len(memory), 1))
	failed := false
	a.FailCopies(func(device.Kind, device.Copy) error {
		if failed {
			return nil
		}
		failed = true
		return tcptest.ErrInjected
	})
	h := serveDevice(a, Options{}, memory)
	c := h.dial()
	var requests [][]byte
	for i := range n {
		requests = append(requests, tcptest.ReadV2(memory[2*i*length:][:length]))
	}
	c.Send(requests...)
	got, err := io.ReadAll(c.Conn)
	require.Error(t, err)
	answer := append(make([]byte, wire.StatusSize), memory[:length]...)
	wire.PutStatus(answer, wire.StatusOK)
	if len(got) >= len(answer) {
		require.True(t, bytes.Equal(answer, got[:len(answer)]))
	}
	require.Contains(t, h.waitForLog("data connection lost").ContextMap()["error"], tcptest.ErrInjected.Error())
}

func TestDeviceWithoutStagingMemoryFailsTheRequest(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory, host := a.Memory(4096), tcptest.Mapped(t, 4096)
	h := serveDevice(a, Options{}, memory)
	h.memory.add(host, true)
	require.NoError(t, a.Staging.Close())
	c := h.dial()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(host), []byte("abc")), tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	c.ExpectStatus(wire.StatusOK)
	c.ExpectStatus(wire.StatusFailed)
	c.ExpectEnd()
	require.Contains(t, h.waitForLog("data request failed").ContextMap()["reason"], staging.ErrClosed.Error())
}

// oneGranule are options with which one lease in each direction is all there is.
var oneGranule = tcptest.Blocks(1, staging.Granule)

func TestPeerThatGoesAwayInTheMiddleLeavesNoLeaseBehind(t *testing.T) {
	a := tcptest.Accelerate(t, oneGranule)
	memory := a.Memory(1 << 20)
	h := serveDevice(a, Options{}, memory)
	whole := tcptest.WriteV2(hostmem.AddressOf(memory), tcptest.Pattern(1<<20, 1))
	for name, b := range map[string][]byte{
		"in a payload":      whole[:1<<19],
		"before a payload":  whole[:wire.HeaderSize],
		"before its answer": tcptest.ReadV2(memory),
	} {
		t.Run(name, func(t *testing.T) {
			c := h.dial()
			c.Send(b)
			s := h.only()
			require.Eventually(t, func() bool { return s.progress.Load() > 0 }, tcptest.Patience, time.Millisecond)
			require.NoError(t, c.Conn.(*net.TCPConn).SetLinger(0))
			require.NoError(t, c.Conn.Close())
			h.waitForSessions(0)
			c = h.dial()
			c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")), tcptest.ReadV2(memory[:3]))
			c.ExpectStatus(wire.StatusOK)
			c.ExpectStatus(wire.StatusOK)
			c.Expect([]byte("abc"))
			require.NoError(t, c.Conn.Close())
			h.waitForSessions(0)
		})
	}
}

func TestSessionsGoOnWhileAPeerStalls(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 256<<10))
	memory := a.Memory(64 << 20)
	h := serveDevice(a, Options{}, memory)
	notReading, halfSent, busy := h.dial(), h.dial(), h.dial()
	notReading.Send(tcptest.ReadV2(memory))
	halfSent.Send(tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 1<<20))[:700<<10])
	for i := range 20 {
		b := memory[32<<20+i*1000:][:1<<20]
		payload := tcptest.Pattern(len(b), byte(i))
		busy.Send(tcptest.WriteV2(hostmem.AddressOf(b), payload), tcptest.ReadV2(b))
		busy.ExpectStatus(wire.StatusOK)
		busy.ExpectStatus(wire.StatusOK)
		busy.Expect(payload)
	}
	require.Equal(t, 3, h.sessions())
}

func TestStalledPeerOfADeviceIsCutOff(t *testing.T) {
	a := tcptest.Accelerate(t, oneGranule)
	memory := a.Memory(64 << 20)
	for name, b := range map[string][]byte{
		"in a payload": tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 1<<20))[:1<<19],
		"not reading":  tcptest.ReadV2(memory),
	} {
		t.Run(name, func(t *testing.T) {
			h := serveDevice(a, Options{ProgressTimeout: 500 * time.Millisecond}, memory)
			stalled, waiting := h.dial(), h.dial()
			stalled.Send(b)
			h.waitForLog("data connection lost")
			h.waitForSessions(1)
			waiting.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
			waiting.ExpectStatus(wire.StatusOK)
		})
	}
}

func TestSessionThatWaitsForItsDeviceIsNotTakenForStalled(t *testing.T) {
	const block = staging.Granule
	for name, when := range map[string]struct {
		blocks  int
		payload int // so much comes before the session waits for the peer, and then the rest
	}{
		"for a lease":    {1, -10},
		"for the sender": {16, turnsAhead*block + block/2},
	} {
		t.Run(name, func(t *testing.T) {
			a := tcptest.Accelerate(t, tcptest.Blocks(when.blocks, block))
			memory := a.Memory(1 << 20)
			h := serveDevice(a, Options{ProgressTimeout: 300 * time.Millisecond}, memory)
			release := a.HoldCopies()
			if when.blocks == 1 {
				lease := a.Lease(staging.In)
				defer lease.Release()
			}
			c := h.dial()
			whole := tcptest.WriteV2(hostmem.AddressOf(memory), tcptest.Pattern(1<<20, 1))
			c.Send(whole[:wire.HeaderSize+when.payload])
			s := h.only()
			require.Eventually(t, s.waiting.Load, tcptest.Patience, time.Millisecond)
			c.Send(whole[wire.HeaderSize+when.payload:])
			require.Eventually(t, func() bool { return !s.waiting.Load() }, tcptest.Patience, time.Millisecond)
			for range 3 {
				h.dial().Send([]byte{1}) // is stalled, and cut off in time
				h.waitForSessions(2)
				h.waitForSessions(1)
			}
			require.NoError(t, s.ended())
			release()
		})
	}
}

func TestCloseEndsASessionThatWaitsForALease(t *testing.T) {
	a := tcptest.Accelerate(t, oneGranule)
	memory := a.Memory(4096)
	h := serveDevice(a, Options{}, memory)
	lease := a.Lease(staging.Out)
	defer lease.Release()
	c := h.dial()
	c.Send(tcptest.ReadV2(memory))
	s := h.only()
	require.Eventually(t, func() bool { return s.uses(h.memory.regions[0]) }, tcptest.Patience, time.Millisecond)
	h.server.Close()
	c.ExpectReset()
}

func TestLongWriteToADeviceKeepsItsRegionPinned(t *testing.T) {
	const block = staging.Granule
	a := tcptest.Accelerate(t, tcptest.Blocks(4, block))
	memory := a.Memory(8 * block)
	h := serveDevice(a, Options{}, memory)
	c := h.dial()
	payload := tcptest.Pattern(len(memory), 1)
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), payload)[:wire.HeaderSize+2*block+100])
	s := h.only()
	require.Eventually(t, func() bool {
		return a.Count(device.HostToDevice) == 2 && s.waiting.Load() && queued(s) == 0
	}, tcptest.Patience, time.Millisecond)
	require.True(t, s.uses(h.memory.regions[0]))
	c.Send(payload[2*block+100:])
	c.ExpectStatus(wire.StatusOK)
	require.True(t, bytes.Equal(payload, memory))
}

func TestEvictWaitsForCopies(t *testing.T) {
	for name, length := range map[string]int{"in a payload": 1 << 20, "in its last copy": 1000} {
		t.Run(name, func(t *testing.T) {
			a := tcptest.Accelerate(t, oneGranule)
			memory := a.Memory(length)
			h := serve(t, Options{})
			region := h.memory.addDevice(memory, a.Staging)
			release := a.HoldCopies()
			c := h.dial()
			whole := tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, length))
			c.Send(whole[:min(len(whole), 1<<19)])
			a.WaitForACopy()
			s := h.only()
			require.Eventually(t, func() bool { return queued(s) == 1 }, tcptest.Patience, time.Millisecond)
			h.server.Evict(region)
			c.ExpectSilence()
			require.True(t, s.uses(region))
			require.Equal(t, 1, h.sessions())
			release()
			c.ExpectReset()
			h.waitForSessions(0)
			require.False(t, s.uses(region))
		})
	}
}

func TestCloseEndsSessionsOfADeviceInEveryState(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(2, 128<<10))
	memory := a.Memory(64 << 20)
	h := serveDevice(a, Options{}, memory)
	var clients []*tcptest.Client
	for _, b := range [][]byte{
		tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")),
		tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc"))[:10],
		tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 1<<20))[:1<<19],
		tcptest.ReadV2(memory),
		tcptest.ReadV1(memory),
		tcptest.WriteV1(hostmem.AddressOf(memory), make([]byte, 1<<20)),
	} {
		c := h.dial()
		c.Send(b)
		clients = append(clients, c)
	}
	h.waitForSessions(len(clients))
	h.server.Close()
	require.Zero(t, h.sessions())
	for _, c := range clients {
		_, _ = io.Copy(io.Discard, c.Conn) // ends
	}
}

func TestCloseBeforeEverythingIsAnsweredNeverLooksLikeSuccess(t *testing.T) {
	const block = 8 << 20
	a := tcptest.Accelerate(t, tcptest.Blocks(8, block))
	memory := a.Memory(3 * block)
	h := serveDevice(a, Options{}, memory)
	c := h.dial()
	require.NoError(t, c.Conn.(*net.TCPConn).SetReadBuffer(4096))
	c.Send(tcptest.ReadV1(memory[:2*block]), tcptest.WriteV1(hostmem.AddressOf(memory[2*block:]), []byte("abc")))
	s := h.only()
	require.Eventually(t, func() bool { return s.sending.Load() && queued(s) == 3 }, tcptest.Patience, time.Millisecond)
	h.server.Close()
	_, err := io.Copy(io.Discard, c.Conn)
	require.Error(t, err)
}

func TestIdleSessionHoldsNoRegionOfADevice(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(4 << 20)
	h := serve(t, Options{})
	region := h.memory.addDevice(memory, a.Staging)
	c := h.dial()
	for range 300 {
		c.Send(tcptest.WriteV1(hostmem.AddressOf(memory), make([]byte, 4096)))
	}
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 1<<20)), tcptest.ReadV2(memory))
	c.ExpectStatus(wire.StatusOK)
	c.ExpectStatus(wire.StatusOK)
	c.Expect(memory)
	require.Eventually(t, func() bool { return !h.only().uses(region) }, tcptest.Patience, time.Millisecond)
}

func TestRejectionComesAfterTheAnswersOfADevice(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(1 << 20)
	c := serveDevice(a, Options{}, memory).dial()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("before")), tcptest.ReadV2(memory[:6]), tcptest.Request(core.Read, true, 4096, 10))
	c.ExpectStatus(wire.StatusOK)
	c.ExpectStatus(wire.StatusOK)
	c.Expect([]byte("before"))
	c.ExpectStatus(wire.StatusRejected)
	c.ExpectEnd()
}

func TestBytesOfADeviceAreCounted(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(4 << 20)
	h := serveDevice(a, Options{}, memory)
	c := h.dial()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 1000)), tcptest.WriteV1(hostmem.AddressOf(memory), make([]byte, 1<<20)), tcptest.ReadV2(memory))
	c.ExpectStatus(wire.StatusOK)
	c.ExpectStatus(wire.StatusOK)
	c.Expect(memory)
	require.Eventually(t, func() bool {
		link := h.server.Links()[0]
		hosts, _ := h.server.Stats()
		return link.BytesIn == 1000+1<<20 && link.BytesOut == uint64(len(memory)) && hosts[0].Write.Requests == 2 && hosts[0].Read.Requests == 1
	}, tcptest.Patience, time.Millisecond)
}

// stretch is memory of the host, or of a device.
type stretch struct {
	addr   uintptr
	length int
	on     *staging.Device // nil for host memory
	read   func() []byte
}

func stretchOf(a *tcptest.Accelerator, length int) stretch {
	b := a.Memory(length)
	return stretch{hostmem.AddressOf(b), length, a.Staging, func() []byte { return b }}
}

func hostStretch(t testing.TB, length int) stretch {
	b := tcptest.Mapped(t, length)
	return stretch{hostmem.AddressOf(b), length, nil, func() []byte { return b }}
}

// compareWithAModel sends random pipelined requests for the stretches, which hold zeros, cut into random pieces, and
// compares answers and memory with what plain slices say.
func compareWithAModel(t *testing.T, seed uint64, stretches ...stretch) {
	random := rand.New(rand.NewPCG(seed, 2))
	h := serve(t, Options{})
	var models [][]byte
	for _, m := range stretches {
		h.memory.addRange(core.Range{Addr: m.addr, Length: uint64(m.length)}, core.FullAccess, m.on)
		models = append(models, make([]byte, m.length))
	}
	var stream, answers []byte
	ok := make([]byte, wire.StatusSize)
	wire.PutStatus(ok, wire.StatusOK)
	for range 300 {
		which := 0 // runs on one of them
		if random.IntN(2) == 0 {
			which = random.IntN(len(stretches))
		}
		model := models[which]
		length := min(len(model), 1+random.IntN([]int{8, 300, 5000, 70000, 300000}[random.IntN(5)]))
		from := random.IntN(len(model) - length + 1)
		v2 := random.IntN(2) == 0
		op := core.Opcode(random.IntN(2))
		stream = append(stream, tcptest.Request(op, v2, stretches[which].addr+uintptr(from), uint64(length))...)
		if v2 {
			answers = append(answers, ok...)
		}
		if op == core.Read {
			answers = append(answers, model[from:from+length]...)
			continue
		}
		payload := tcptest.Pattern(length, byte(random.Uint32()))
		stream = append(stream, payload...)
		copy(model[from:], payload)
	}
	c := h.dial()
	got := sendInParts(t, c, stream, random)
	require.True(t, bytes.Equal(answers, got), "seed %d", seed)
	for i, m := range stretches {
		require.True(t, bytes.Equal(models[i], m.read()), "seed %d, stretch %d", seed, i)
	}
}

func TestRandomRequestsForHostAndDevicesMatchAModel(t *testing.T) {
	for seed := range uint64(12) {
		one, two := tcptest.Accelerate(t, tcptest.Blocks(2+int(seed%3), 128<<10)), tcptest.Accelerate(t, tcptest.Blocks(8, 512<<10))
		compareWithAModel(t, seed, stretchOf(one, 1<<20), stretchOf(two, 2<<20), hostStretch(t, 1<<20), stretchOf(one, 4096))
	}
}

// TestRandomRequestsForSimulatedDevicesMatchAModel is the same on devices that delay whatever they may.
func TestRandomRequestsForSimulatedDevicesMatchAModel(t *testing.T) {
	simtest.NoLeaks(t)
	for seed := range uint64(12) {
		simtest.Seed(t, seed)
		one, two := simulate(t, 0, tcptest.Blocks(2+int(seed%3), 128<<10)), simulate(t, 1, tcptest.Blocks(8, 512<<10))
		compareWithAModel(t, seed, one.stretch(1<<20), two.stretch(2<<20), hostStretch(t, 1<<20), one.stretch(4096))
	}
}

// simulated is a device of the simulator.
type simulated struct {
	device  *simtest.Device
	staging *staging.Device
}

func simulate(t testing.TB, index int, o staging.Options) simulated {
	t.Helper()
	s := simulated{device: simtest.NewDevice(t, index)}
	opened, err := simtest.Runtime(t).Open(index)
	require.NoError(t, err)
	s.staging = tcptest.NewStaging(t, opened, o)
	return s
}

func (s simulated) stretch(length int) stretch {
	addr := s.device.Alloc(length)
	s.device.Write(addr, make([]byte, length))
	return stretch{addr, length, s.staging, func() []byte { return s.device.Read(addr, length) }}
}

func benchmarkDevice(b *testing.B, op core.Opcode, length, depth int) {
	a := tcptest.Accelerate(b, tcptest.Blocks(16, 2<<20))
	memory := a.Memory(depth * length)
	benchmarkRequests(b, serveDevice(a, Options{}, memory).dial(), memory, op, length)
}

func BenchmarkDeviceWrite4K(b *testing.B)  { benchmarkDevice(b, core.Write, 4<<10, 64) }
func BenchmarkDeviceWrite64K(b *testing.B) { benchmarkDevice(b, core.Write, 64<<10, 64) }
func BenchmarkDeviceWrite1M(b *testing.B)  { benchmarkDevice(b, core.Write, 1<<20, 16) }
func BenchmarkDeviceRead4K(b *testing.B)   { benchmarkDevice(b, core.Read, 4<<10, 64) }
func BenchmarkDeviceRead1M(b *testing.B)   { benchmarkDevice(b, core.Read, 1<<20, 16) }
