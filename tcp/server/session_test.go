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
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zapcore"
)

// lengths are small, odd, around the sizes of the read-ahead buffers, and long.
var lengths = []int{1, 7, 24, 25, 4095, 4096, bulkLength - 1, bulkLength, readAhead - wire.HeaderSize, readAhead,
	readAhead + 1, turnBytes, 3<<20 + 5}

func TestWriteIsAcknowledgedWhenItIsInMemory(t *testing.T) {
	memory := tcptest.Mapped(t, 4<<20)
	c := serve(t, Options{}, memory).dial()
	for i, length := range lengths {
		payload := tcptest.Pattern(length, byte(i))
		c.Send(tcptest.WriteV2(hostmem.AddressOf(memory)+3, payload))
		c.ExpectStatus(wire.StatusOK)
		require.True(t, bytes.Equal(payload, memory[3:3+length]), length)
	}
}

func TestReadAnswersStatusAndPayload(t *testing.T) {
	memory := tcptest.Mapped(t, 4<<20)
	copy(memory, tcptest.Pattern(len(memory), 1))
	c := serve(t, Options{}, memory).dial()
	for _, length := range lengths {
		c.Send(tcptest.ReadV2(memory[5 : 5+length]))
		c.ExpectStatus(wire.StatusOK)
		c.Expect(memory[5 : 5+length])
	}
}

func TestVersion1ConnectionServesManyRequests(t *testing.T) {
	memory := tcptest.Mapped(t, 4<<20)
	c := serve(t, Options{}, memory).dial()
	for i, length := range lengths {
		payload := tcptest.Pattern(length, byte(i))
		c.Send(tcptest.WriteV1(hostmem.AddressOf(memory), payload))
		c.Send(tcptest.ReadV1(memory[:length]))
		c.Expect(payload)
	}
}

func TestVersion1WriteIsConfirmedByTheEndOfAHalfClosedConnection(t *testing.T) {
	memory := tcptest.Mapped(t, 4<<20)
	h := serve(t, Options{}, memory)
	for i, length := range lengths {
		c := h.dial()
		payload := tcptest.Pattern(length, byte(i))
		c.Send(tcptest.WriteV1(hostmem.AddressOf(memory), payload))
		require.NoError(t, c.Conn.CloseWrite())
		c.ExpectEnd()
		require.True(t, bytes.Equal(payload, memory[:length]), length)
	}
}

func TestReadsOfAHalfClosedConnectionAreAnsweredBeforeItEnds(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	copy(memory, tcptest.Pattern(len(memory), 1))
	c := serve(t, Options{}, memory).dial()
	c.Send(tcptest.ReadV1(memory), tcptest.ReadV2(memory[:10]))
	require.NoError(t, c.Conn.CloseWrite())
	c.Expect(memory)
	c.ExpectStatus(wire.StatusOK)
	c.Expect(memory[:10])
	c.ExpectEnd()
}

func TestPipelinedRequestsAreAnsweredInOrderWithTheirVersionMixed(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	c := serve(t, Options{}, memory).dial()
	one, two := tcptest.Pattern(4096, 1), tcptest.Pattern(4096, 2)
	at := hostmem.AddressOf(memory)
	c.Send(
		tcptest.WriteV1(at, one), tcptest.ReadV2(memory[:100]), tcptest.WriteV2(at, two), tcptest.ReadV1(memory[:4096]), tcptest.ReadV1(memory[10:11]),
		tcptest.WriteV2(at+1, one), tcptest.ReadV2(memory[:3]),
	)
	c.ExpectStatus(wire.StatusOK)
	c.Expect(one[:100])
	c.ExpectStatus(wire.StatusOK)
	c.Expect(two)
	c.Expect(two[10:11])
	c.ExpectStatus(wire.StatusOK)
	c.ExpectStatus(wire.StatusOK)
	c.Expect([]byte{two[0], one[0], one[1]})
}

func TestReadGetsWhatWasThereBeforeAWriteThatFollowsIt(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	c := serve(t, Options{}, memory).dial()
	before := tcptest.Pattern(len(memory), 1)
	copy(memory, before)
	var requests [][]byte
	for i := range 100 {
		requests = append(requests, tcptest.ReadV2(memory[i*100:(i+1)*100]))
	}
	c.Send(append(requests, tcptest.WriteV2(hostmem.AddressOf(memory)+50, make([]byte, 9000)))...)
	for i := range 100 {
		c.ExpectStatus(wire.StatusOK)
		c.Expect(before[i*100 : (i+1)*100])
	}
	c.ExpectStatus(wire.StatusOK)
}

func TestWriteBehindAReadOfTheSameMemoryKeepsItsRegionPinned(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	h := serve(t, Options{})
	region := h.memory.add(memory, true)
	c := h.dial()
	payload := tcptest.Pattern(len(memory), 1)
	c.Send(tcptest.ReadV2(memory[:100]), tcptest.WriteV2(hostmem.AddressOf(memory), payload)[:wire.HeaderSize+1<<19])
	c.ExpectStatus(wire.StatusOK)
	c.Expect(make([]byte, 100))
	require.Eventually(t, func() bool { return memory[1<<19-1] == payload[1<<19-1] }, tcptest.Patience, time.Millisecond)
	require.True(t, h.only().uses(region))
}

func TestGarbageInThePaddingIsIgnored(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	c := serve(t, Options{}, memory).dial()
	b := tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc"))
	copy(b[17:], "\xff\xfe\xfd\xfc\xfb\xfa\xf9")
	c.Send(b)
	c.ExpectStatus(wire.StatusOK)
}

func TestRequestsThatTrickleInAreServed(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{ProgressTimeout: time.Second}, memory)
	c := h.dial()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for _, b := range tcptest.WriteV2(hostmem.AddressOf(memory), []byte("hello")) {
		<-tick.C
		c.Send([]byte{b})
	}
	c.ExpectStatus(wire.StatusOK)
	require.Equal(t, "hello", string(memory[:5]))
}

func TestRejectedRangeEndsTheConnectionAfterTheRequestsBeforeItAndExecutesNoneBehind(t *testing.T) {
	memory := tcptest.Mapped(t, 8192)
	private := tcptest.Mapped(t, 4096)
	at := uint64(hostmem.AddressOf(memory))
	for name, bad := range map[string]struct{ addr, length uint64 }{
		"length 0":             {at, 0},
		"not registered":       {4096, 10},
		"wraps":                {at, ^uint64(0) - 5},
		"wraps to zero":        {^uint64(0) - 9, 10},
		"half registered":      {at + 8000, 193},
		"begins before":        {at - 1, 10},
		"not open to peers":    {uint64(hostmem.AddressOf(private)), 10},
		"one byte behind":      {at + 8192, 1},
		"as long as can be":    {0, ^uint64(0)},
		"the end of addresses": {^uint64(0), 1},
	} {
		for _, op := range []core.Opcode{core.Read, core.Write} {
			t.Run(name+" "+op.String(), func(t *testing.T) {
				h := serve(t, Options{}, memory)
				h.memory.add(private, false)
				clear(memory)
				c := h.dial()
				c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("before")), tcptest.ReadV2(memory[:6]),
					tcptest.Request(op, true, uintptr(bad.addr), bad.length), tcptest.WriteV2(hostmem.AddressOf(memory), []byte("behind")))
				c.ExpectStatus(wire.StatusOK)
				c.ExpectStatus(wire.StatusOK)
				c.Expect([]byte("before"))
				c.ExpectStatus(wire.StatusRejected)
				c.ExpectEnd()
				require.NoError(t, c.Conn.Close())
				h.waitForSessions(0)
				require.Equal(t, "before", string(memory[:6]))

				fields := h.waitForLog("data request rejected").ContextMap()
				require.Equal(t, c.Conn.LocalAddr().String(), fields["peer"])
				require.Equal(t, bad.length, fields["length"])
				require.Contains(t, fields["reason"], "not registered")
				require.EqualValues(t, 1, h.server.Links()[0].Errors)
			})
			t.Run(name+" version 1 "+op.String(), func(t *testing.T) {
				h := serve(t, Options{}, memory)
				h.memory.add(private, false)
				clear(memory)
				c := h.dial()
				c.Send(tcptest.WriteV1(hostmem.AddressOf(memory), []byte("before")), tcptest.ReadV1(memory[:6]))
				c.Expect([]byte("before"))
				c.Send(tcptest.Request(op, false, uintptr(bad.addr), bad.length))
				c.ExpectReset()
				h.waitForSessions(0)
			})
		}
	}
}

func TestRejectionReachesAPeerThatIsStillSending(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{}, memory)
	c := h.dial()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = c.Conn.Write(tcptest.WriteV2(4096, make([]byte, rejectedBytes/2)))
	}()
	<-sent
	c.ExpectStatus(wire.StatusRejected)
	c.ExpectEnd()
}

func TestPeerThatKeepsSendingAfterARejectionIsCutOff(t *testing.T) {
	h := serve(t, Options{})
	c := h.dial()
	c.Send(tcptest.Request(core.Write, true, 4096, 1<<40))
	b := make([]byte, 1<<20)
	var err error
	for err == nil {
		_, err = c.Conn.Write(b)
	}
	h.waitForSessions(0)
}

func TestRejectedVersion1WriteNeverLooksLikeSuccess(t *testing.T) {
	h := serve(t, Options{})
	c := h.dial()
	c.Send(tcptest.WriteV1(4096, []byte("small enough to be acknowledged by the kernel")))
	_ = c.Conn.CloseWrite() // fails when the reset is here already
	c.ExpectReset()
}

func TestUnknownOpcodeEndsTheConnectionAndIsLogged(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{}, memory)
	c := h.dial()
	b := tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc"))
	b[16] = 0x42
	c.Send(b)
	c.ExpectReset()
	require.Contains(t, h.waitForLog("data connection lost").ContextMap()["error"], "opcode 0x42")
	require.Zero(t, memory[0])
}

func TestPeerThatClosesInTheMiddleLeavesNothingBehind(t *testing.T) {
	memory := tcptest.Mapped(t, 4<<20)
	whole := tcptest.WriteV2(hostmem.AddressOf(memory), tcptest.Pattern(1<<20, 1))
	for _, length := range []int{1, wire.HeaderSize - 1, wire.HeaderSize, wire.HeaderSize + 1, readAhead, 1 << 19, len(whole) - 1} {
		h := serve(t, Options{}, memory)
		c := h.dial()
		c.Send(tcptest.ReadV2(memory[2<<20:2<<20+3]), whole[:length])
		require.NoError(t, c.Conn.CloseWrite())
		c.ExpectStatus(wire.StatusOK)
		c.Expect(memory[2<<20 : 2<<20+3])
		c.ExpectReset()
		lost := h.waitForLog("data connection lost")
		if length > wire.HeaderSize {
			require.Contains(t, lost.ContextMap()["error"], "bytes of a WRITE of 1048576 at")
			require.Equal(t, zapcore.WarnLevel, lost.Level)
		}
		h.waitForSessions(0)
	}
}

func TestAPeerThatEndsInTheMiddleOfManyWritesIsWarnedOfOnce(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	h := serve(t, Options{}, memory)
	begun := tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 1<<20))[:1<<19]
	conns := []*tcptest.Client{h.dial(), h.dial(), h.dial()}
	for _, c := range conns {
		c.Send(begun)
	}
	h.waitForSessions(len(conns))
	for _, c := range conns {
		require.NoError(t, c.Conn.Close())
	}
	h.waitForSessions(0)
	lost := h.logs.FilterMessage("data connection lost")
	require.Equal(t, len(conns), lost.Len())
	require.Equal(t, 1, lost.FilterLevelExact(zapcore.WarnLevel).Len())
}

func TestPeerThatClosesWithoutReadingItsAnswersLeavesNothingBehind(t *testing.T) {
	memory := tcptest.Mapped(t, 64<<20)
	h := serve(t, Options{}, memory)
	c := h.dial()
	c.Send(tcptest.ReadV2(memory))
	c.ExpectStatus(wire.StatusOK)
	require.NoError(t, c.Conn.(*net.TCPConn).SetLinger(0))
	require.NoError(t, c.Conn.Close())
	h.waitForSessions(0)
}

func TestStalledPeerIsCutOff(t *testing.T) {
	memory := tcptest.Mapped(t, 64<<20)
	whole := tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 1<<20))
	for name, b := range map[string][]byte{
		"in a header":     whole[:10],
		"in a payload":    whole[:1<<19],
		"not reading":     tcptest.ReadV2(memory),
		"not reading, v1": tcptest.ReadV1(memory),
	} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, Options{ProgressTimeout: 50 * time.Millisecond}, memory)
			c := h.dial()
			c.Send(b)
			require.Contains(t, h.waitForLog("data connection lost").ContextMap()["error"], "no byte moved for 50ms")
			h.waitForSessions(0)
		})
	}
}

func TestIdlePeerIsNeverCutOffAndCostsNothing(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	h := serve(t, Options{ProgressTimeout: 500 * time.Millisecond}, memory) // more than a session may lack a processor
	idle, other := h.dial(), h.dial()
	idle.Send(tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, bulkLength))) // comes in one piece, however busy the machine is
	idle.ExpectStatus(wire.StatusOK)
	other.Send([]byte{1}) // makes the target look for stalled sessions
	h.waitForLog("data connection lost")
	require.Eventually(t, func() bool { return !h.server.watching.Load() }, tcptest.Patience, time.Millisecond)
	idle.Send(tcptest.ReadV1(memory[:1]))
	idle.Expect(memory[:1])
	require.Equal(t, 1, h.sessions())
}

func TestEvictEndsTheSessionsThatMoveBytesOfTheRegionAndNoOthers(t *testing.T) {
	memory, other := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 64<<20)
	h := serve(t, Options{}, memory)
	region := h.memory.add(other, true)
	writer, reader, bystander := h.dial(), h.dial(), h.dial()
	bystander.Send(tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 1<<20))[:1000])
	writer.Send(tcptest.WriteV2(hostmem.AddressOf(other), make([]byte, 1<<20))[:1<<19])
	reader.Send(tcptest.ReadV2(other))
	moving := func() (n int) {
		h.server.mu.Lock()
		defer h.server.mu.Unlock()
		for s := range h.server.sessions {
			if s.uses(region) {
				n++
			}
		}
		return n
	}
	require.Eventually(t, func() bool { return moving() == 2 }, tcptest.Patience, time.Millisecond)
	h.server.Evict(region)
	writer.ExpectReset()
	_, err := io.Copy(io.Discard, reader.Conn)
	require.Error(t, err)
	h.waitForSessions(1)
	require.Zero(t, moving())
	bystander.Send(make([]byte, 1<<20+wire.HeaderSize-1000))
	bystander.ExpectStatus(wire.StatusOK)
	require.Contains(t, h.waitForLog("data connection lost").ContextMap()["error"], "being unregistered")
}

func TestIdleSessionHoldsNoRegion(t *testing.T) {
	memory := tcptest.Mapped(t, 8<<20)
	h := serve(t, Options{})
	region := h.memory.add(memory, true)
	c := h.dial()
	s := h.only()
	for range 1024 {
		c.Send(tcptest.WriteV1(hostmem.AddressOf(memory), make([]byte, 4096)))
	}
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 4096)))
	c.ExpectStatus(wire.StatusOK)
	require.Eventually(t, func() bool { return !s.uses(region) }, tcptest.Patience, time.Millisecond)
}

func TestMemoryThatItsOwnerUnmappedFailsTheRequestAndNothingElse(t *testing.T) {
	gone, memory := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
	h := serve(t, Options{}, gone, memory)
	tcptest.Unmap(t, gone)
	for name, b := range map[string][]byte{
		"copied":   tcptest.WriteV2(hostmem.AddressOf(gone), make([]byte, 100)),
		"received": tcptest.WriteV2(hostmem.AddressOf(gone), make([]byte, 1<<20)),
	} {
		t.Run(name, func(t *testing.T) {
			c := h.dial()
			c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")), b)
			c.ExpectStatus(wire.StatusOK)
			c.ExpectStatus(wire.StatusInaccessible)
			c.ExpectEnd()
		})
		t.Run(name+" version 1", func(t *testing.T) {
			c := h.dial()
			b[16] &^= wire.ProtoV2
			_, err := c.Conn.Write(b) // fails when the reset is here already, and then takes it from Read
			if err == nil {
				_, err = c.Conn.Read(make([]byte, 1))
			}
			require.Error(t, err)
			require.NotEqual(t, io.EOF, err)
		})
	}
	t.Run("sent", func(t *testing.T) {
		c := h.dial()
		c.Send(tcptest.ReadV2(memory[:3]), tcptest.ReadV2(gone[:1]))
		c.ExpectStatus(wire.StatusOK)
		c.Expect(memory[:3])
		c.ExpectStatus(wire.StatusInaccessible)
		c.ExpectEnd()
	})
	h.waitForSessions(0)
	told := h.logs.FilterLevelExact(zapcore.WarnLevel).All()
	require.Len(t, told, 1, "the fault is told once")
	fields := told[0].ContextMap()
	require.Equal(t, fmt.Sprintf("%#x", hostmem.AddressOf(gone)), fields["address"])
	require.Equal(t, core.Range{Addr: hostmem.AddressOf(gone), Length: uint64(len(gone))}.String(), fields["region"])
	c := h.dial()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")))
	c.ExpectStatus(wire.StatusOK)
}

func TestWriteThatRunsIntoUnmappedMemoryFails(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	h := serve(t, Options{}, memory)
	tcptest.Unmap(t, memory[1<<19:])
	c := h.dial()
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), tcptest.Pattern(1<<20, 1)))
	c.ExpectStatus(wire.StatusInaccessible)
}

func TestReadThatRunsIntoUnmappedMemoryIsNeverTakenForComplete(t *testing.T) {
	memory := tcptest.Mapped(t, 8<<20)
	h := serve(t, Options{}, memory)
	tcptest.Unmap(t, memory[7<<20:])
	c := h.dial()
	c.Send(tcptest.ReadV2(memory))
	c.ExpectStatus(wire.StatusOK) // the answer has begun by the time that anybody knows
	n, err := io.Copy(io.Discard, c.Conn)
	require.Error(t, err)
	require.Less(t, n, int64(len(memory)))
	h.waitForSessions(0)
	again := h.dial()
	again.Send(tcptest.ReadV2(memory[:1<<20]), tcptest.ReadV2(memory), tcptest.ReadV2(memory[:1<<20]))
	again.ExpectStatus(wire.StatusOK)
	again.Expect(memory[:1<<20])
	again.ExpectStatus(wire.StatusInaccessible)
	again.ExpectEnd()
	require.Len(t, h.logs.FilterLevelExact(zapcore.WarnLevel).All(), 1)
	require.NotContains(t, fmt.Sprint(h.logs.All()[0].ContextMap()), "0xc000", "no address of the library's own memory")
}

// Two versions on one connection: what comes before the payload is no status that could be taken back.
func TestUnmappedMemoryBehindAnAnswerOfVersion1ResetsTheConnection(t *testing.T) {
	memory, gone := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	h := serve(t, Options{}, memory, gone)
	tcptest.Unmap(t, gone)
	c := h.dial()
	c.Send(tcptest.ReadV1(memory), tcptest.ReadV1(gone))
	got, err := io.ReadAll(c.Conn)
	require.Error(t, err)
	require.LessOrEqual(t, len(got), len(memory))
}

func TestBytesAndConnectionsAreCounted(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	h := serve(t, Options{}, memory)
	a, b := h.dial(), h.dial()
	for _, c := range []*tcptest.Client{a, b} {
		c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), make([]byte, 1000)), tcptest.ReadV2(memory[:300]))
		c.ExpectStatus(wire.StatusOK)
		c.ExpectStatus(wire.StatusOK)
		c.Expect(memory[:300])
	}
	require.NoError(t, a.Conn.Close())
	h.waitForSessions(1)
	var links []core.Link
	require.Eventually(t, func() bool {
		links = h.server.Links()
		return links[0].BytesOut == 600
	}, tcptest.Patience, time.Millisecond)
	require.Equal(t, []core.Link{{Peer: "127.0.0.1", Transport: "tcp", Direction: "target", Connections: 1,
		BytesIn: 2000, BytesOut: 600}}, links)
}

// TestRandomRequestsMatchAModelOfMemory sends random pipelined requests, cut into random pieces, and compares answers
// and memory with what a plain slice says.
func TestRandomRequestsMatchAModelOfMemory(t *testing.T) {
	for seed := range uint64(16) {
		sameHost := seed%2 == 1
		random := rand.New(rand.NewPCG(seed, 1))
		memory := tcptest.Mapped(t, 1<<20)
		model := make([]byte, len(memory))
		var stream, answers []byte
		ok := make([]byte, wire.StatusSize)
		wire.PutStatus(ok, wire.StatusOK)
		for range 300 {
			length := 1 + random.IntN([]int{8, 300, 5000, 70000, 300000}[random.IntN(5)])
			from := random.IntN(len(memory) - length)
			v2 := random.IntN(2) == 0
			op := core.Opcode(random.IntN(2))
			if sameHost && v2 && op == core.Write && random.IntN(2) == 0 {
				payload := tcptest.Mapped(t, length)
				copy(payload, tcptest.Pattern(length, byte(random.Uint32())))
				stream = append(stream, tcptest.WriteByAddress(hostmem.AddressOf(memory)+uintptr(from), payload)...)
				answers = append(answers, ok...)
				copy(model[from:], payload)
				continue
			}
			stream = append(stream, tcptest.Request(op, v2, hostmem.AddressOf(memory)+uintptr(from), uint64(length))...)
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
		h := serve(t, Options{}, memory)
		dial := h.dial
		if sameHost {
			dial = h.dialSameHost
		}
		c := dial()
		got := sendInParts(t, c, stream, random)
		require.True(t, bytes.Equal(answers, got), "seed %d", seed)
		require.True(t, bytes.Equal(model, memory), "seed %d", seed)
	}
}

func TestServingDoesNotAllocatePerRequest(t *testing.T) {
	const depth, length = 64, 4096
	memory := tcptest.Mapped(t, depth*length)
	c := serve(t, Options{}, memory).dial()
	var requests []byte
	for i := range depth {
		requests = append(requests, tcptest.WriteV2(hostmem.AddressOf(memory)+uintptr(i*length), make([]byte, length))...)
	}
	for i := range depth {
		requests = append(requests, tcptest.ReadV2(memory[i*length:(i+1)*length])...)
	}
	answers := make([]byte, depth*wire.StatusSize+depth*(wire.StatusSize+length))
	require.Zero(t, testing.AllocsPerRun(50, func() {
		if _, err := c.Conn.Write(requests); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(c.Conn, answers); err != nil {
			t.Error(err)
		}
	}))
}

func benchmarkTarget(b *testing.B, op core.Opcode, length, depth int) {
	memory := tcptest.Mapped(b, depth*length)
	benchmarkRequests(b, serve(b, Options{}, memory).dial(), memory, op, length)
}

// benchmarkRequests has a client ask for the pieces of the memory over and over.
func benchmarkRequests(b *testing.B, c *tcptest.Client, memory []byte, op core.Opcode, length int) {
	depth := len(memory) / length
	_ = c.Conn.SetDeadline(time.Time{})
	var requests []byte
	answer := wire.StatusSize
	for i := range depth {
		at := memory[i*length : (i+1)*length]
		if op == core.Write {
			requests = append(requests, tcptest.WriteV2(hostmem.AddressOf(at), at)...)
		} else {
			requests = append(requests, tcptest.ReadV2(at)...)
			answer = wire.StatusSize + length
		}
	}
	b.SetBytes(int64(length))
	b.ResetTimer()
	go func() {
		for range b.N / depth {
			if _, err := c.Conn.Write(requests); err != nil {
				b.Error(err)
			}
		}
	}()
	answers := make([]byte, depth*answer)
	for range b.N / depth {
		if _, err := io.ReadFull(c.Conn, answers); err != nil {
			b.Error(err)
		}
	}
}

func BenchmarkTargetWrite4K(b *testing.B)  { benchmarkTarget(b, core.Write, 4<<10, 64) }
func BenchmarkTargetWrite16K(b *testing.B) { benchmarkTarget(b, core.Write, 16<<10, 64) }
func BenchmarkTargetWrite64K(b *testing.B) { benchmarkTarget(b, core.Write, 64<<10, 64) }
func BenchmarkTargetWrite1M(b *testing.B)  { benchmarkTarget(b, core.Write, 1<<20, 16) }
func BenchmarkTargetRead4K(b *testing.B)   { benchmarkTarget(b, core.Read, 4<<10, 64) }
func BenchmarkTargetRead1M(b *testing.B)   { benchmarkTarget(b, core.Read, 1<<20, 16) }

func TestASessionThatPollsLeavesOffForAnotherOne(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{Polling: time.Hour}, memory)
	first := h.dial()
	polling := h.only()
	first.Send(tcptest.ReadV2(memory[:8]))
	first.ExpectStatus(wire.StatusOK)
	first.Expect(memory[:8])

	second := h.dial()
	require.Eventually(t, func() bool { // not at once, where it begins to look only afterwards
		second.Send(tcptest.ReadV2(memory[:8]))
		second.ExpectStatus(wire.StatusOK)
		second.Expect(memory[:8])
		return polling.conn.AwaitsBytes()
	}, tcptest.Patience, time.Millisecond)
}
