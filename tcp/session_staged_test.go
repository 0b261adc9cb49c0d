package tcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zapcore"
)

// stagedLengths are those of host memory, and around blocks of 512 KiB.
var stagedLengths = append([]int{loadBytes - 1, loadBytes + 1, 512<<10 - 1, 512 << 10, 512<<10 + 1, 3<<19 + 7}, lengths...)

func TestWriteToADeviceIsAcknowledgedWhenItIsInMemory(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory := a.memory(4 << 20)
	c := a.serve(targetOptions{}, memory).dial()
	for i, length := range stagedLengths {
		payload := tcptest.Pattern(length, byte(i))
		at := 1 + 37*i
		c.send(writeV2(sockio.AddressOf(memory)+uintptr(at), payload))
		c.expectStatus(wire.StatusOK)
		require.True(t, bytes.Equal(payload, memory[at:at+length]), length)
	}
}

func TestReadFromADeviceAnswersStatusAndPayload(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory := a.memory(4 << 20)
	copy(memory, tcptest.Pattern(len(memory), 1))
	c := a.serve(targetOptions{}, memory).dial()
	for i, length := range stagedLengths {
		at := 1 + 37*i
		c.send(readV2(memory[at : at+length]))
		c.expectStatus(wire.StatusOK)
		c.expect(memory[at : at+length])
	}
}

func TestVersion1RequestsForADevice(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory := a.memory(4 << 20)
	h := a.serve(targetOptions{}, memory)
	c := h.dial()
	for i, length := range stagedLengths {
		payload := tcptest.Pattern(length, byte(i))
		c.send(writeV1(sockio.AddressOf(memory)+5, payload), readV1(memory[5:5+length]))
		c.expect(payload)
		confirmed := h.dial()
		confirmed.send(writeV1(sockio.AddressOf(memory), payload))
		require.NoError(t, confirmed.conn.CloseWrite())
		confirmed.expectEnd()
		require.True(t, bytes.Equal(payload, memory[:length]), length)
	}
}

func TestNothingIsConfirmedBeforeTheCopyIsDone(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory := a.memory(1 << 20)
	for name, version1 := range map[string]bool{"by a status": false, "by the end of the connection": true} {
		t.Run(name, func(t *testing.T) {
			c := a.serve(targetOptions{}, memory).dial()
			release := a.holdCopies()
			if version1 {
				c.send(writeV1(sockio.AddressOf(memory), []byte("abc")))
				require.NoError(t, c.conn.CloseWrite())
			} else {
				c.send(writeV2(sockio.AddressOf(memory), []byte("abc")))
			}
			c.expectSilence()
			release()
			if !version1 {
				c.expectStatus(wire.StatusOK)
				require.NoError(t, c.conn.CloseWrite())
			}
			c.expectEnd()
			require.Equal(t, "abc", string(memory[:3]))
			clear(memory)
		})
	}
}

// expectSilence waits a while for something that must not come.
func (c *client) expectSilence() {
	c.t.Helper()
	require.NoError(c.t, c.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	n, err := c.conn.Read(make([]byte, 1))
	var timeout net.Error
	require.ErrorAs(c.t, err, &timeout, "%d bytes", n)
	require.True(c.t, timeout.Timeout(), err)
	require.NoError(c.t, c.conn.SetReadDeadline(time.Now().Add(tcptest.Patience)))
}

func TestOnlyWhatDependsOnACopyWaitsForIt(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory, host := a.memory(4096), tcptest.Mapped(t, 4096)
	h := a.serve(targetOptions{}, memory)
	h.memory.add(host, true)
	c := h.dial()
	release := a.holdCopies()
	c.send(writeV2(sockio.AddressOf(host), []byte("abc")), writeV2(sockio.AddressOf(memory), []byte("def")), readV2(host[:3]))
	c.expectStatus(wire.StatusOK)
	c.expectSilence()
	release()
	c.expectStatus(wire.StatusOK)
	c.expectStatus(wire.StatusOK)
	c.expect([]byte("abc"))
}

func TestAnswersAreNotWithheldWhilePayloadForADeviceIsMissing(t *testing.T) {
	for _, length := range []int{100, loadBytes - 1, 1 << 20} {
		a := accelerate(t, blocks(4, 512<<10))
		memory := a.memory(2 << 20)
		c := a.serve(targetOptions{}, memory).dial()
		second := writeV2(sockio.AddressOf(memory), tcptest.Pattern(length, 1))
		c.send(writeV2(sockio.AddressOf(memory), []byte("first")), second[:wire.HeaderSize+length/2])
		c.expectStatus(wire.StatusOK)
		c.send(second[wire.HeaderSize+length/2:])
		c.expectStatus(wire.StatusOK)
		require.True(t, bytes.Equal(tcptest.Pattern(length, 1), memory[:length]), length)
	}
}

func TestPayloadIsReceivedWhileEarlierPayloadIsCopied(t *testing.T) {
	const length = 512 << 10
	a := accelerate(t, blocks(16, length))
	memory := a.memory(8 * length)
	h := a.serve(targetOptions{}, memory)
	c := h.dial()
	release := a.holdCopies()
	for i := range turnsAhead {
		c.send(writeV2(sockio.AddressOf(memory)+uintptr(i*length), tcptest.Pattern(length, byte(i))))
	}
	require.Eventually(t, func() bool { return h.only().bytesIn.Load() == turnsAhead*length }, tcptest.Patience, time.Millisecond)
	release()
	for range turnsAhead {
		c.expectStatus(wire.StatusOK)
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

func TestReadsAreCopiedAheadOfWhatIsSent(t *testing.T) {
	const length = 512 << 10
	a := accelerate(t, blocks(16, length))
	memory := a.memory(8 * length)
	h := a.serve(targetOptions{}, memory)
	c := h.dial()
	release := a.holdCopies()
	c.send(readV2(memory))
	s := h.only()
	require.Eventually(t, func() bool { return queued(s) == turnsAhead }, tcptest.Patience, time.Millisecond)
	release()
	c.expectStatus(wire.StatusOK)
	c.expect(memory)
}

func TestShortRequestsForADeviceShareJobs(t *testing.T) {
	const n, length, stride = 512, 4000, 8192
	a := accelerate(t, blocks(16, 2<<20))
	memory := a.memory(n * stride)
	c := a.serve(targetOptions{}, memory).dial()
	payload := tcptest.Pattern(length, 3)
	release := a.holdCopies()
	c.send(writeV2(sockio.AddressOf(memory), payload))
	a.waitForACopy()
	var writes, reads [][]byte
	for i := 1; i < n; i++ {
		writes = append(writes, writeV2(sockio.AddressOf(memory)+uintptr(i*stride), payload))
	}
	for i := range n {
		reads = append(reads, readV2(memory[i*stride:][:length]))
	}
	c.send(writes...)
	release()
	for range n {
		c.expectStatus(wire.StatusOK)
	}
	require.Less(t, a.count(device.HostToDevice), n/4)
	c.send(reads...)
	for range n {
		c.expectStatus(wire.StatusOK)
		c.expect(payload)
	}
	require.Less(t, a.count(device.DeviceToHost), n/32)
}

func TestReadOfADeviceGetsWhatWasThereBeforeAWriteThatFollowsIt(t *testing.T) {
	a := accelerate(t, blocks(16, 512<<10))
	memory := a.memory(1 << 20)
	before := tcptest.Pattern(len(memory), 1)
	copy(memory, before)
	c := a.serve(targetOptions{}, memory).dial()
	var requests [][]byte
	for i := range 100 {
		requests = append(requests, readV2(memory[i*100:(i+1)*100]))
	}
	release := a.holdCopies()
	c.send(append(requests, writeV2(sockio.AddressOf(memory)+50, make([]byte, 9000)), readV2(memory[:10000]))...)
	a.waitForACopy()
	release()
	for i := range 100 {
		c.expectStatus(wire.StatusOK)
		c.expect(before[i*100 : (i+1)*100])
	}
	c.expectStatus(wire.StatusOK)
	c.expectStatus(wire.StatusOK)
	copy(before[50:], make([]byte, 9000))
	c.expect(before[:10000])
}

func TestReadOfHostMemoryGetsWhatWasThereBeforeAWriteThatFollowsItWhileADeviceIsBusy(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory, host := a.memory(4096), tcptest.Mapped(t, 4096)
	h := a.serve(targetOptions{}, memory)
	h.memory.add(host, true)
	before := tcptest.Pattern(len(host), 1)
	copy(host, before)
	c := h.dial()
	release := a.holdCopies()
	c.send(writeV2(sockio.AddressOf(memory), []byte("abc")), readV2(host))
	a.waitForACopy()
	c.send(writeV2(sockio.AddressOf(host), []byte("abc")))
	c.expectSilence()
	release()
	c.expectStatus(wire.StatusOK)
	c.expectStatus(wire.StatusOK)
	c.expect(before)
	c.expectStatus(wire.StatusOK)
	require.Equal(t, "abc", string(host[:3]))
}

// errInjected is what a failing copy reports.
var errInjected = errors.New("507899: the device is on fire")

// failAround has copies of a direction fail that touch a byte of the device.
func (a *accelerator) failAround(kind device.Kind, addr uintptr) {
	a.failCopies(func(k device.Kind, c device.Copy) error {
		on := c.Src
		if k == device.HostToDevice {
			on = c.Dst
		}
		if k == device.WithinDevice { // gathering and scattering touch it from either side
			if addr-c.Src < uintptr(c.Length) || addr-c.Dst < uintptr(c.Length) {
				return errInjected
			}
			return nil
		}
		if k == kind && addr-on < uintptr(c.Length) {
			return errInjected
		}
		return nil
	})
}

func TestFailedCopyFailsItsRequestAfterThoseBeforeItAndServesNoneBehind(t *testing.T) {
	const length = 4096
	for op, kind := range map[core.Opcode]device.Kind{core.Write: device.HostToDevice, core.Read: device.DeviceToHost} {
		t.Run(op.String(), func(t *testing.T) {
			a := accelerate(t, blocks(4, 512<<10))
			memory := a.memory(64 * length)
			copy(memory, tcptest.Pattern(len(memory), 1))
			h := a.serve(targetOptions{}, memory)
			bad := sockio.AddressOf(memory) + 20*length
			a.failAround(kind, bad+17)
			c := h.dial()
			var requests [][]byte
			for i := 0; i < 64; i += 2 {
				b := memory[i*length:][:length]
				if op == core.Write {
					requests = append(requests, writeV2(sockio.AddressOf(b), b))
				} else {
					requests = append(requests, readV2(b))
				}
			}
			c.send(requests...)
			for i := range 10 {
				c.expectStatus(wire.StatusOK)
				if op == core.Read {
					c.expect(memory[2*i*length:][:length])
				}
			}
			c.expectStatus(wire.StatusFailed)
			c.expectEnd()
			require.NoError(t, c.conn.Close())
			h.waitForSessions(0)
			line := h.waitForLog("data request failed")
			require.Equal(t, zapcore.WarnLevel, line.Level)
			fields := line.ContextMap()
			require.Equal(t, c.conn.LocalAddr().String(), fields["peer"])
			require.Equal(t, fmt.Sprintf("%#x", bad), fields["address"])
			require.EqualValues(t, length, fields["length"])
			require.Contains(t, fields["reason"], errInjected.Error())

			c = h.dial() // the others are asked for again
			c.send(requests[11])
			c.expectStatus(wire.StatusOK)
		})
	}
}

func TestNothingBehindAFailedCopyIsAnswered(t *testing.T) {
	const length = loadBytes // a load of its own
	a := accelerate(t, blocks(8, 512<<10))
	memory := a.memory(3 * length)
	a.failAround(device.HostToDevice, sockio.AddressOf(memory))
	h := a.serve(targetOptions{}, memory)
	c := h.dial()
	release := a.holdCopies()
	for i := range 3 {
		c.send(writeV2(sockio.AddressOf(memory)+uintptr(i*length), make([]byte, length)))
	}
	s := h.only()
	require.Eventually(t, func() bool { return queued(s) == 3 }, tcptest.Patience, time.Millisecond)
	release()
	c.expectStatus(wire.StatusFailed)
	c.expectEnd()
}

func TestNothingIsSentAfterTheSenderHasFailed(t *testing.T) {
	h := serve(t, targetOptions{})
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	peer, err := net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
	require.NoError(t, err)
	defer func() { _ = peer.Close() }()
	conn, err := listener.AcceptTCP()
	require.NoError(t, err)

	s := newSession(h.target, socketOf(t, conn))
	s.startStaging()
	s.mu.Lock()
	s.staged.failure = errInjected
	s.mu.Unlock()
	s.turn.oweStatus(wire.StatusOK)
	require.ErrorIs(t, s.flush(), errInjected)
	require.ErrorIs(t, s.endStaging(io.EOF), errInjected)
	require.NoError(t, s.conn.Close())
	got, err := io.ReadAll(peer)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestFailedCopyOfAVersion1RequestResetsTheConnection(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory := a.memory(4096)
	a.failCopies(func(device.Kind, device.Copy) error { return errInjected })
	h := a.serve(targetOptions{}, memory)
	t.Run("WRITE", func(t *testing.T) {
		c := h.dial()
		c.send(writeV1(sockio.AddressOf(memory), []byte("abc")))
		_ = c.conn.CloseWrite() // fails when the reset is here already
		c.expectReset()
	})
	t.Run("READ", func(t *testing.T) {
		c := h.dial()
		c.send(readV1(memory))
		c.expectReset()
	})
}

func TestReadThatFailsInTheMiddleIsCutOff(t *testing.T) {
	const block = 512 << 10
	a := accelerate(t, blocks(4, block))
	memory := a.memory(4 * block)
	copy(memory, tcptest.Pattern(len(memory), 1))
	a.failAround(device.DeviceToHost, sockio.AddressOf(memory)+2*block+5)
	h := a.serve(targetOptions{}, memory)
	c := h.dial()
	c.send(readV2(memory))
	got, err := io.ReadAll(c.conn)
	require.Error(t, err)
	require.LessOrEqual(t, len(got), wire.StatusSize+2*block)
	h.waitForLog("data request failed")
}

func TestWriteThatFailsInTheMiddleIsToldWhileItIsStillSent(t *testing.T) {
	const block = 512 << 10
	a := accelerate(t, blocks(4, block))
	memory := a.memory(4 * block)
	a.failAround(device.HostToDevice, sockio.AddressOf(memory)+5)
	c := a.serve(targetOptions{}, memory).dial()
	c.send(writeV2(sockio.AddressOf(memory), make([]byte, 4*block))[:2*block])
	c.expectStatus(wire.StatusFailed)
	c.expectEnd()
}

func TestCopiesThatFailOnceEndTheSessionWithoutAFalseAnswer(t *testing.T) {
	const n, length = 8, 4096
	a := accelerate(t, blocks(4, 512<<10))
	memory := a.memory(2 * n * length)
	copy(memory, tcptest.Pattern(len(memory), 1))
	failed := false
	a.failCopies(func(device.Kind, device.Copy) error {
		if failed {
			return nil
		}
		failed = true
		return errInjected
	})
	h := a.serve(targetOptions{}, memory)
	c := h.dial()
	var requests [][]byte
	for i := range n {
		requests = append(requests, readV2(memory[2*i*length:][:length]))
	}
	c.send(requests...)
	got, err := io.ReadAll(c.conn)
	require.Error(t, err)
	answer := append(make([]byte, wire.StatusSize), memory[:length]...)
	wire.PutStatus(answer, wire.StatusOK)
	if len(got) >= len(answer) {
		require.True(t, bytes.Equal(answer, got[:len(answer)]))
	}
	require.Contains(t, h.waitForLog("data connection lost").ContextMap()["error"], errInjected.Error())
}

func TestDeviceWithoutStagingMemoryFailsTheRequest(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory, host := a.memory(4096), tcptest.Mapped(t, 4096)
	h := a.serve(targetOptions{}, memory)
	h.memory.add(host, true)
	require.NoError(t, a.staging.Close())
	c := h.dial()
	c.send(writeV2(sockio.AddressOf(host), []byte("abc")), writeV2(sockio.AddressOf(memory), []byte("abc")))
	c.expectStatus(wire.StatusOK)
	c.expectStatus(wire.StatusFailed)
	c.expectEnd()
	require.Contains(t, h.waitForLog("data request failed").ContextMap()["reason"], staging.ErrClosed.Error())
}

// oneGranule are options with which one lease in each direction is all there is.
var oneGranule = blocks(1, staging.Granule)

func TestPeerThatGoesAwayInTheMiddleLeavesNoLeaseBehind(t *testing.T) {
	a := accelerate(t, oneGranule)
	memory := a.memory(1 << 20)
	h := a.serve(targetOptions{}, memory)
	whole := writeV2(sockio.AddressOf(memory), tcptest.Pattern(1<<20, 1))
	for name, b := range map[string][]byte{
		"in a payload":      whole[:1<<19],
		"before a payload":  whole[:wire.HeaderSize],
		"before its answer": readV2(memory),
	} {
		t.Run(name, func(t *testing.T) {
			c := h.dial()
			c.send(b)
			s := h.only()
			require.Eventually(t, func() bool { return s.progress.Load() > 0 }, tcptest.Patience, time.Millisecond)
			require.NoError(t, c.conn.(*net.TCPConn).SetLinger(0))
			require.NoError(t, c.conn.Close())
			h.waitForSessions(0)
			c = h.dial()
			c.send(writeV2(sockio.AddressOf(memory), []byte("abc")), readV2(memory[:3]))
			c.expectStatus(wire.StatusOK)
			c.expectStatus(wire.StatusOK)
			c.expect([]byte("abc"))
			require.NoError(t, c.conn.Close())
			h.waitForSessions(0)
		})
	}
}

func TestSessionsGoOnWhileAPeerStalls(t *testing.T) {
	a := accelerate(t, blocks(4, 256<<10))
	memory := a.memory(64 << 20)
	h := a.serve(targetOptions{}, memory)
	notReading, halfSent, busy := h.dial(), h.dial(), h.dial()
	notReading.send(readV2(memory))
	halfSent.send(writeV2(sockio.AddressOf(memory), make([]byte, 1<<20))[:700<<10])
	for i := range 20 {
		b := memory[32<<20+i*1000:][:1<<20]
		payload := tcptest.Pattern(len(b), byte(i))
		busy.send(writeV2(sockio.AddressOf(b), payload), readV2(b))
		busy.expectStatus(wire.StatusOK)
		busy.expectStatus(wire.StatusOK)
		busy.expect(payload)
	}
	require.Equal(t, 3, h.sessions())
}

func TestStalledPeerOfADeviceIsCutOff(t *testing.T) {
	a := accelerate(t, oneGranule)
	memory := a.memory(64 << 20)
	for name, b := range map[string][]byte{
		"in a payload": writeV2(sockio.AddressOf(memory), make([]byte, 1<<20))[:1<<19],
		"not reading":  readV2(memory),
	} {
		t.Run(name, func(t *testing.T) {
			h := a.serve(targetOptions{progressTimeout: 50 * time.Millisecond}, memory)
			stalled, waiting := h.dial(), h.dial()
			stalled.send(b)
			h.waitForLog("data connection lost")
			h.waitForSessions(1)
			waiting.send(writeV2(sockio.AddressOf(memory), []byte("abc")))
			waiting.expectStatus(wire.StatusOK)
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
			a := accelerate(t, blocks(when.blocks, block))
			memory := a.memory(1 << 20)
			h := a.serve(targetOptions{progressTimeout: 50 * time.Millisecond}, memory)
			release := a.holdCopies()
			if when.blocks == 1 {
				lease := a.lease(staging.In)
				defer lease.Release()
			}
			c := h.dial()
			whole := writeV2(sockio.AddressOf(memory), tcptest.Pattern(1<<20, 1))
			c.send(whole[:wire.HeaderSize+when.payload])
			s := h.only()
			require.Eventually(t, s.waiting.Load, tcptest.Patience, time.Millisecond)
			c.send(whole[wire.HeaderSize+when.payload:])
			require.Eventually(t, func() bool { return !s.waiting.Load() }, tcptest.Patience, time.Millisecond)
			for range 3 {
				h.dial().send([]byte{1}) // is stalled, and cut off in time
				h.waitForSessions(2)
				h.waitForSessions(1)
			}
			require.NoError(t, s.ended())
			release()
		})
	}
}

// lease takes all that there is of a single block.
func (a *accelerator) lease(way staging.Direction) *staging.Lease {
	a.t.Helper()
	account := a.staging.Account(way, staging.Target, nil)
	a.t.Cleanup(account.Close)
	ctx, done := context.WithTimeout(context.Background(), tcptest.Patience)
	defer done()
	lease, err := account.Lease(ctx, a.staging.BlockSize())
	require.NoError(a.t, err)
	return lease
}

func TestCloseEndsASessionThatWaitsForALease(t *testing.T) {
	a := accelerate(t, oneGranule)
	memory := a.memory(4096)
	h := a.serve(targetOptions{}, memory)
	lease := a.lease(staging.Out)
	defer lease.Release()
	c := h.dial()
	c.send(readV2(memory))
	s := h.only()
	require.Eventually(t, func() bool { return s.moves(h.memory.regions[0]) }, tcptest.Patience, time.Millisecond)
	h.target.close()
	c.expectReset()
}

func TestLongWriteToADeviceKeepsItsRegionPinned(t *testing.T) {
	const block = staging.Granule
	a := accelerate(t, blocks(4, block))
	memory := a.memory(8 * block)
	h := a.serve(targetOptions{}, memory)
	c := h.dial()
	payload := tcptest.Pattern(len(memory), 1)
	c.send(writeV2(sockio.AddressOf(memory), payload)[:wire.HeaderSize+2*block+100])
	s := h.only()
	require.Eventually(t, func() bool {
		return a.count(device.HostToDevice) == 2 && s.waiting.Load() && queued(s) == 0
	}, tcptest.Patience, time.Millisecond)
	require.True(t, s.moves(h.memory.regions[0]))
	c.send(payload[2*block+100:])
	c.expectStatus(wire.StatusOK)
	require.True(t, bytes.Equal(payload, memory))
}

func TestEvictWaitsForCopies(t *testing.T) {
	for name, length := range map[string]int{"in a payload": 1 << 20, "in its last copy": 1000} {
		t.Run(name, func(t *testing.T) {
			a := accelerate(t, oneGranule)
			memory := a.memory(length)
			h := serve(t, targetOptions{})
			region := h.memory.addDevice(memory, a.staging)
			release := a.holdCopies()
			c := h.dial()
			whole := writeV2(sockio.AddressOf(memory), make([]byte, length))
			c.send(whole[:min(len(whole), 1<<19)])
			a.waitForACopy()
			s := h.only()
			require.Eventually(t, func() bool { return queued(s) == 1 }, tcptest.Patience, time.Millisecond)
			h.target.evict(region)
			c.expectSilence()
			require.True(t, s.moves(region))
			require.Equal(t, 1, h.sessions())
			release()
			c.expectReset()
			h.waitForSessions(0)
			require.False(t, s.moves(region))
		})
	}
}

func TestCloseEndsSessionsOfADeviceInEveryState(t *testing.T) {
	a := accelerate(t, blocks(2, 128<<10))
	memory := a.memory(64 << 20)
	h := a.serve(targetOptions{}, memory)
	var clients []*client
	for _, b := range [][]byte{
		writeV2(sockio.AddressOf(memory), []byte("abc")),
		writeV2(sockio.AddressOf(memory), []byte("abc"))[:10],
		writeV2(sockio.AddressOf(memory), make([]byte, 1<<20))[:1<<19],
		readV2(memory),
		readV1(memory),
		writeV1(sockio.AddressOf(memory), make([]byte, 1<<20)),
	} {
		c := h.dial()
		c.send(b)
		clients = append(clients, c)
	}
	h.waitForSessions(len(clients))
	h.target.close()
	require.Zero(t, h.sessions())
	for _, c := range clients {
		_, _ = io.Copy(io.Discard, c.conn) // ends
	}
}

func TestCloseBeforeEverythingIsAnsweredNeverLooksLikeSuccess(t *testing.T) {
	const block = 8 << 20
	a := accelerate(t, blocks(8, block))
	memory := a.memory(3 * block)
	h := a.serve(targetOptions{}, memory)
	c := h.dial()
	require.NoError(t, c.conn.(*net.TCPConn).SetReadBuffer(4096))
	c.send(readV1(memory[:2*block]), writeV1(sockio.AddressOf(memory[2*block:]), []byte("abc")))
	s := h.only()
	require.Eventually(t, func() bool { return s.sending.Load() && queued(s) == 3 }, tcptest.Patience, time.Millisecond)
	h.target.close()
	_, err := io.Copy(io.Discard, c.conn)
	require.Error(t, err)
}

func TestIdleSessionHoldsNoRegionOfADevice(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory := a.memory(4 << 20)
	h := serve(t, targetOptions{})
	region := h.memory.addDevice(memory, a.staging)
	c := h.dial()
	for range 300 {
		c.send(writeV1(sockio.AddressOf(memory), make([]byte, 4096)))
	}
	c.send(writeV2(sockio.AddressOf(memory), make([]byte, 1<<20)), readV2(memory))
	c.expectStatus(wire.StatusOK)
	c.expectStatus(wire.StatusOK)
	c.expect(memory)
	require.Eventually(t, func() bool { return !h.only().moves(region) }, tcptest.Patience, time.Millisecond)
}

func TestRejectionComesAfterTheAnswersOfADevice(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory := a.memory(1 << 20)
	c := a.serve(targetOptions{}, memory).dial()
	c.send(writeV2(sockio.AddressOf(memory), []byte("before")), readV2(memory[:6]), request(core.Read, true, 4096, 10))
	c.expectStatus(wire.StatusOK)
	c.expectStatus(wire.StatusOK)
	c.expect([]byte("before"))
	c.expectStatus(wire.StatusRejected)
	c.expectEnd()
}

func TestBytesOfADeviceAreCounted(t *testing.T) {
	a := accelerate(t, blocks(4, 512<<10))
	memory := a.memory(4 << 20)
	h := a.serve(targetOptions{}, memory)
	c := h.dial()
	c.send(writeV2(sockio.AddressOf(memory), make([]byte, 1000)), writeV1(sockio.AddressOf(memory), make([]byte, 1<<20)), readV2(memory))
	c.expectStatus(wire.StatusOK)
	c.expectStatus(wire.StatusOK)
	c.expect(memory)
	require.Eventually(t, func() bool {
		link := h.target.links()[0]
		return link.BytesIn == 1000+1<<20 && link.BytesOut == uint64(len(memory))
	}, tcptest.Patience, time.Millisecond)
}

// stretch is memory of the host, or of a device.
type stretch struct {
	addr   uintptr
	length int
	on     *staging.Device // nil for host memory
	read   func() []byte
}

func (a *accelerator) stretch(length int) stretch {
	b := a.memory(length)
	return stretch{sockio.AddressOf(b), length, a.staging, func() []byte { return b }}
}

func hostStretch(t testing.TB, length int) stretch {
	b := tcptest.Mapped(t, length)
	return stretch{sockio.AddressOf(b), length, nil, func() []byte { return b }}
}

// compareWithAModel sends random pipelined requests for the stretches, which hold zeros, cut into random pieces, and
// compares answers and memory with what plain slices say.
func compareWithAModel(t *testing.T, seed uint64, stretches ...stretch) {
	random := rand.New(rand.NewPCG(seed, 2))
	h := serve(t, targetOptions{})
	var models [][]byte
	for _, m := range stretches {
		h.memory.addRange(core.Range{Addr: m.addr, Length: uint64(m.length)}, true, m.on)
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
		stream = append(stream, request(op, v2, stretches[which].addr+uintptr(from), uint64(length))...)
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
	go func() {
		for len(stream) > 0 {
			n, err := c.conn.Write(stream[:min(len(stream), 1+random.IntN(200000))])
			if !assert.NoError(t, err) {
				return
			}
			stream = stream[n:]
		}
		assert.NoError(t, c.conn.CloseWrite())
	}()
	got, err := io.ReadAll(c.conn)
	require.NoError(t, err)
	require.True(t, bytes.Equal(answers, got), "seed %d", seed)
	for i, m := range stretches {
		require.True(t, bytes.Equal(models[i], m.read()), "seed %d, stretch %d", seed, i)
	}
}

func TestRandomRequestsForHostAndDevicesMatchAModel(t *testing.T) {
	for seed := range uint64(12) {
		one, two := accelerate(t, blocks(2+int(seed%3), 128<<10)), accelerate(t, blocks(8, 512<<10))
		compareWithAModel(t, seed, one.stretch(1<<20), two.stretch(2<<20), hostStretch(t, 1<<20), one.stretch(4096))
	}
}

// TestRandomRequestsForSimulatedDevicesMatchAModel is the same on devices that delay whatever they may.
func TestRandomRequestsForSimulatedDevicesMatchAModel(t *testing.T) {
	simtest.NoLeaks(t)
	for seed := range uint64(12) {
		simtest.Seed(t, seed)
		one, two := simulate(t, 0, blocks(2+int(seed%3), 128<<10)), simulate(t, 1, blocks(8, 512<<10))
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
	s.staging = stage(t, opened, o)
	return s
}

func (s simulated) stretch(length int) stretch {
	addr := s.device.Alloc(length)
	s.device.Write(addr, make([]byte, length))
	return stretch{addr, length, s.staging, func() []byte { return s.device.Read(addr, length) }}
}

func benchmarkDevice(b *testing.B, op core.Opcode, length, depth int) {
	a := accelerate(b, blocks(16, 2<<20))
	memory := a.memory(depth * length)
	benchmarkRequests(b, a.serve(targetOptions{}, memory).dial(), memory, op, length)
}

func BenchmarkDeviceWrite4K(b *testing.B)  { benchmarkDevice(b, core.Write, 4<<10, 64) }
func BenchmarkDeviceWrite64K(b *testing.B) { benchmarkDevice(b, core.Write, 64<<10, 64) }
func BenchmarkDeviceWrite1M(b *testing.B)  { benchmarkDevice(b, core.Write, 1<<20, 16) }
func BenchmarkDeviceRead4K(b *testing.B)   { benchmarkDevice(b, core.Read, 4<<10, 64) }
func BenchmarkDeviceRead1M(b *testing.B)   { benchmarkDevice(b, core.Read, 1<<20, 16) }
