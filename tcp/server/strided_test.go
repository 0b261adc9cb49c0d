package server

import (
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
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
	"golang.org/x/sys/unix"
)

// stridedRequest is the frame of a strided request without payload.
func stridedRequest(op wire.Opcode, addr uintptr, run uint64, axes ...wire.Axis) (frame []byte, length uint64) {
	s := wire.Strided{Run: run}
	length = run
	for i, a := range axes {
		s.Axes[i] = a
		length *= a.Count
	}
	frame = make([]byte, wire.HeaderSize+wire.StridedBody(len(axes)))
	wire.PutStrided(frame, op, uint64(addr), length, &s, len(axes))
	return frame, length
}

// randomRuns are runs within size bytes that do not overlap: the offset of the first, and the offsets of all bytes in the
// order of the payload.
func randomRuns(random *rand.Rand, size int) (first int, run uint64, axes []wire.Axis, places []int) {
	run = uint64(1 + random.IntN([]int{8, 64, 2000}[random.IntN(3)]))
	extent, length := run, run
	axes = make([]wire.Axis, random.IntN(wire.MaxAxes+1))
	for i := len(axes) - 1; i >= 0; i-- {
		stride := extent + uint64(random.IntN(100))
		count := 1 + random.Uint64N(min(4, (uint64(size)-extent)/stride, wire.MaxStrided/length-1)+1)
		length *= count
		axes[i] = wire.Axis{Count: count, Stride: int64(stride)}
		extent += (count - 1) * stride
	}
	first = random.IntN(size - int(extent) + 1)
	for i := range axes {
		if random.IntN(3) == 0 {
			first += int(axes[i].Count-1) * int(axes[i].Stride)
			axes[i].Stride = -axes[i].Stride
		}
	}
	return first, run, axes, appendPlaces(nil, first, run, axes)
}

func appendPlaces(places []int, at int, run uint64, axes []wire.Axis) []int {
	if len(axes) == 0 {
		for i := range int(run) {
			places = append(places, at+i)
		}
		return places
	}
	for range axes[0].Count {
		places = appendPlaces(places, at, run, axes[1:])
		at += int(axes[0].Stride)
	}
	return places
}

// payloadOf is what follows the header of a request for places in the model, and what the answer to it has behind its status. A
// WRITE changes the model.
func payloadOf(op core.Opcode, model []byte, places []int, random *rand.Rand) (sent, answered []byte) {
	if op == core.Read {
		for _, p := range places {
			answered = append(answered, model[p])
		}
		return nil, answered
	}
	sent = tcptest.Pattern(len(places), byte(random.Uint32()))
	for i, p := range places {
		model[p] = sent[i]
	}
	return sent, nil
}

var greeting = (&wire.Hello{Origin: wire.Identity{7}, Number: 1}).Encode()

// TestRandomStridedRequestsMatchAModelOfMemory sends strided requests among others, pipelined and cut into random pieces, and
// compares answers and memory with what a plain slice says.
func TestRandomStridedRequestsMatchAModelOfMemory(t *testing.T) {
	for seed := range uint64(12) {
		random := rand.New(rand.NewPCG(seed, 2))
		var h *harness
		var memory []byte
		if seed%3 == 2 {
			a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
			memory = a.Memory(1 << 20)
			h = serveDevice(a, Options{}, memory)
		} else {
			memory = tcptest.Mapped(t, 1<<20)
			h = serve(t, Options{}, memory)
		}
		base := hostmem.AddressOf(memory)
		dial := h.dial
		var stream, answers []byte
		if seed%3 == 1 {
			dial = h.dialSameHost
		} else {
			stream = append(stream, greeting...)
		}
		model := make([]byte, len(memory))
		ok := make([]byte, wire.StatusSize)
		wire.PutStatus(ok, wire.StatusOK)
		for range 400 {
			op := core.Opcode(random.IntN(2))
			first, run, axes, places := randomRuns(random, len(memory))
			frame, length := stridedRequest(wire.Opcode(op), base+uintptr(first), run, axes...)
			if random.IntN(4) == 0 { // a range
				first = random.IntN(len(memory) - len(places))
				places = appendPlaces(nil, first, length, nil)
				frame = tcptest.Request(op, true, base+uintptr(first), length)
				if payload := tcptest.Mapped(t, int(length)); seed%3 == 1 && op == core.Write {
					copy(payload, tcptest.Pattern(int(length), byte(random.Uint32())))
					stream = append(stream, tcptest.WriteByAddress(base+uintptr(first), payload)...)
					answers = append(answers, ok...)
					copy(model[first:], payload)
					continue
				}
			}
			stream, answers = append(stream, frame...), append(answers, ok...)
			sent, answered := payloadOf(op, model, places, random)
			stream, answers = append(stream, sent...), append(answers, answered...)
		}
		got := sendInParts(t, dial(), stream, random)
		if seed%3 != 1 {
			answer, err := wire.ReadAnswer(bytes.NewReader(got))
			require.NoError(t, err)
			require.EqualValues(t, wire.AnswerStrided, answer.Flags)
			got = got[len(answer.Encode()):]
		}
		require.True(t, bytes.Equal(answers, got), "seed %d", seed)
		require.True(t, bytes.Equal(model, memory), "seed %d", seed)
	}
}

func TestEachRunOfAStridedRequestMustLieInARegion(t *testing.T) {
	memory := tcptest.Mapped(t, 4*4096)
	region, constant := memory[4096:2*4096], memory[3*4096:]
	h := serve(t, Options{}, region)
	h.memory.addFor(constant, core.RemoteRead, nil)
	at := hostmem.AddressOf(region)
	number := uint64(0)
	for name, test := range map[string]struct {
		want  uint32
		frame func() ([]byte, uint64)
	}{
		"the last run ends behind it": {wire.StatusRejected, func() ([]byte, uint64) {
			return stridedRequest(wire.Write, at+8, 64, wire.Axis{Count: 2, Stride: 4096 - 71})
		}},
		"the last run begins before it": {wire.StatusRejected, func() ([]byte, uint64) {
			return stridedRequest(wire.Write, at+64, 64, wire.Axis{Count: 2, Stride: -65})
		}},
		"a run between two regions": {wire.StatusRejected, func() ([]byte, uint64) {
			return stridedRequest(wire.Read, at, 64, wire.Axis{Count: 3, Stride: 4096})
		}},
		"a region among others that may only be read": {wire.StatusForbidden, func() ([]byte, uint64) {
			return stridedRequest(wire.Write, at, 64, wire.Axis{Count: 2, Stride: 2 * 4096})
		}},
		"a region that may only be read": {wire.StatusForbidden, func() ([]byte, uint64) {
			return stridedRequest(wire.Write, hostmem.AddressOf(constant), 64, wire.Axis{Count: 2, Stride: 128})
		}},
		"no runs": {wire.StatusRejected, func() ([]byte, uint64) {
			return stridedRequest(wire.Write, at, 64, wire.Axis{Count: 0, Stride: 128})
		}},
		"too much": {wire.StatusRejected, func() ([]byte, uint64) {
			return stridedRequest(wire.Read, at, 64, wire.Axis{Count: wire.MaxStrided, Stride: 0})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			c := h.dial()
			number++
			require.EqualValues(t, wire.StatusOK, c.Greet(wire.Hello{Number: number}).Code)
			frame, _ := test.frame()
			c.Send(frame)
			c.ExpectStatus(test.want)
			require.Equal(t, make([]byte, 4*4096), memory)
		})
	}
}

func TestRunsThatAlternateBetweenRegionsNeedNoLookUpEach(t *testing.T) {
	memory := tcptest.Mapped(t, 2*wire.MaxStrided)
	copy(memory, tcptest.Pattern(len(memory), 7))
	h := serve(t, Options{}, memory[:wire.MaxStrided], memory[wire.MaxStrided:])
	frame, length := stridedRequest(wire.Read, hostmem.AddressOf(memory), 1,
		wire.Axis{Count: wire.MaxStrided / 2, Stride: 1}, wire.Axis{Count: 2, Stride: wire.MaxStrided})
	want := make([]byte, length)
	for i := range want {
		want[i] = memory[i/2+i%2*wire.MaxStrided]
	}
	c := h.dial()
	c.Greet(wire.Hello{Number: 1})
	c.Send(frame)
	c.ExpectStatus(wire.StatusOK)
	c.Expect(want)
	h.memory.mu.Lock()
	defer h.memory.mu.Unlock()
	require.Less(t, h.memory.lookups, 8)
}

func TestTheRunsOfAStridedRequestMayLieInSeveralRegionsAndAllOfThemStayPinned(t *testing.T) {
	memory := tcptest.Mapped(t, 8*4096)
	h := serve(t, Options{})
	var regions []*core.Region
	for i := range 8 {
		regions = append(regions, h.memory.add(memory[i*4096:(i+1)*4096], true))
	}
	c := h.dial()
	c.Greet(wire.Hello{Number: 1})
	write, length := stridedRequest(wire.Write, hostmem.AddressOf(memory)+100, 32, wire.Axis{Count: 4, Stride: 2 * 4096}, wire.Axis{Count: 2, Stride: 64})
	payload := tcptest.Pattern(int(length), 3)
	for range 3 {
		c.Send(tcptest.WriteV2(hostmem.AddressOf(memory), []byte("abc")), write, payload[:200])
		c.ExpectStatus(wire.StatusOK)
		s := h.only()
		require.Eventually(t, func() bool { return s.waiting.Load() }, tcptest.Patience, time.Millisecond)
		for i, r := range regions {
			require.Equal(t, i%2 == 0, s.uses(r), i)
		}
		c.Send(payload[200:])
		c.ExpectStatus(wire.StatusOK)
		require.Eventually(t, func() bool { return len(s.holds()) == 0 }, tcptest.Patience, time.Millisecond)
	}
	read, _ := stridedRequest(wire.Read, hostmem.AddressOf(memory)+100, 32, wire.Axis{Count: 4, Stride: 2 * 4096}, wire.Axis{Count: 2, Stride: 64})
	c.Send(read)
	c.ExpectStatus(wire.StatusOK)
	c.Expect(payload)
}

// inManyRegions is a request for runs of a byte in a thousand regions, each along both axes in another region than the one before,
// and a session without a goroutine that may pin them.
func inManyRegions(t testing.TB, rounds int) (h *harness, s *session, r *strided) {
	const regions, size = maxRegions, 1 << 10
	memory := tcptest.Mapped(t, regions*size)
	h = serve(t, Options{})
	for i := range regions {
		h.memory.add(memory[i*size:(i+1)*size-1], true)
	}
	r = &strided{memory: hostmem.Strided{Base: hostmem.AddressOf(memory), Run: 1, Count: 2}}
	r.Op = wire.Write
	r.memory.Axes[0] = hostmem.Axis{Count: uint64(rounds), Stride: size + 1}
	r.memory.Axes[1] = hostmem.Axis{Count: uint64(regions - rounds + 1), Stride: size}
	return h, &session{server: h.server, turn: newTurn()}, r
}

func TestRunsInManyRegionsPinEachOnceWhateverTheirOrder(t *testing.T) {
	for _, backwards := range []bool{false, true} {
		h, s, r := inManyRegions(t, 3)
		if backwards {
			for i := range r.memory.Axes[:2] {
				axis := &r.memory.Axes[i]
				r.memory.Base += uintptr(int64(axis.Count-1) * axis.Stride)
				axis.Stride = -axis.Stride
			}
		}
		first, err := s.pinStrided(r)
		require.NoError(t, err)
		require.True(t, first.Holds(uint64(r.memory.Base), 1))
		require.Equal(t, maxRegions, s.pinned)
		require.Equal(t, maxRegions, h.memory.pinned)
		require.Less(t, h.memory.lookups, maxRegions+8)
		s.unpin()
	}
}

// The runs of one request cost about as much as their copy would.
func BenchmarkPinManyRunsInManyRegions(b *testing.B) {
	_, s, r := inManyRegions(b, 256)
	for b.Loop() {
		if _, err := s.pinStrided(r); err != nil {
			b.Fatal(err)
		}
		s.unpin()
	}
}

func TestAStridedRequestInTooManyRegionsIsRefused(t *testing.T) {
	const count = 1025
	memory := tcptest.Mapped(t, count*64)
	h := serve(t, Options{})
	for i := range count {
		h.memory.add(memory[i*64:(i+1)*64-1], true)
	}
	c := h.dial()
	c.Greet(wire.Hello{Number: 1})
	frame, _ := stridedRequest(wire.Read, hostmem.AddressOf(memory), 8, wire.Axis{Count: count, Stride: 64})
	c.Send(frame)
	c.ExpectStatus(wire.StatusRejected)
}

func TestAStridedRequestWithoutAHelloEndsTheConnection(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	c := serve(t, Options{}, memory).dial()
	frame, length := stridedRequest(wire.Write, hostmem.AddressOf(memory), 8, wire.Axis{Count: 2, Stride: 16})
	c.Send(frame, make([]byte, length))
	c.ExpectReset()
}

func TestAStridedRequestForMemoryThatIsGoneFailsAlone(t *testing.T) {
	for _, op := range []wire.Opcode{wire.Read, wire.Write} {
		memory := tcptest.Mapped(t, 4*4096)
		h := serve(t, Options{}, memory)
		require.NoError(t, unix.Mprotect(memory[2*4096:3*4096], unix.PROT_NONE))
		c := h.dial()
		c.Greet(wire.Hello{Number: 1})
		frame, length := stridedRequest(op, hostmem.AddressOf(memory), 8, wire.Axis{Count: 4, Stride: 4096})
		if op == wire.Write {
			frame = append(frame, make([]byte, length)...)
		}
		c.Send(frame)
		c.ExpectStatus(wire.StatusInaccessible)
		c.ExpectEnd()
	}
}

// TestALongRunThatIsGoneIsRefusedTheNextTime sends a READ for runs that are not packed: a part of the answer may be sent before the
// server finds out.
func TestALongRunThatIsGoneIsRefusedTheNextTime(t *testing.T) {
	memory := tcptest.Mapped(t, 8*4096)
	h := serve(t, Options{}, memory)
	require.NoError(t, unix.Mprotect(memory[4*4096:5*4096], unix.PROT_NONE))
	frame, length := stridedRequest(wire.Read, hostmem.AddressOf(memory), sockio.MinDirectRun, wire.Axis{Count: 4, Stride: 2 * 4096})
	c := h.dial()
	c.Greet(wire.Hello{Number: 1})
	c.Send(frame)
	answer, _ := io.ReadAll(c.Conn)
	require.Less(t, uint64(len(answer)), wire.StatusSize+length, "a promise that was not kept")
	c = h.dial()
	c.Greet(wire.Hello{Number: 2})
	c.Send(frame)
	c.ExpectStatus(wire.StatusInaccessible)
	c.ExpectEnd()
}

func TestAStridedRequestKeepsItsRegionPinnedUntilItIsServed(t *testing.T) {
	memory := tcptest.Mapped(t, 4096)
	h := serve(t, Options{})
	region := h.memory.add(memory, true)
	c := h.dial()
	c.Greet(wire.Hello{Number: 1})
	frame, _ := stridedRequest(wire.Write, hostmem.AddressOf(memory), 8, wire.Axis{Count: 4, Stride: 16})
	c.Send(frame, make([]byte, 9))
	s := h.only()
	require.Eventually(t, func() bool { return s.waiting.Load() }, tcptest.Patience, time.Millisecond)
	require.True(t, s.uses(region))
	c.Send(make([]byte, 32-9))
	c.ExpectStatus(wire.StatusOK)
	require.Eventually(t, func() bool { return !s.uses(region) }, tcptest.Patience, time.Millisecond)
}

func TestServingStridedRequestsDoesNotAllocate(t *testing.T) {
	memory := tcptest.Mapped(t, 1<<20)
	c := serve(t, Options{}, memory).dial()
	c.Greet(wire.Hello{Number: 1})
	axes := []wire.Axis{{Count: 4, Stride: 4096}, {Count: 4, Stride: 256}}
	write, length := stridedRequest(wire.Write, hostmem.AddressOf(memory), 64, axes...)
	read, _ := stridedRequest(wire.Read, hostmem.AddressOf(memory), 64, axes...)
	requests := bytes.Repeat(append(append(write, make([]byte, length)...), read...), 20)
	answers := make([]byte, 20*(2*wire.StatusSize+length))
	require.Zero(t, testing.AllocsPerRun(50, func() {
		if _, err := c.Conn.Write(requests); err != nil {
			t.Error(err)
		}
		for got := 0; got < len(answers); {
			n, err := c.Conn.Read(answers[got:])
			if got += n; err != nil {
				t.Error(err)
				return
			}
		}
	}))
}

// A strided READ of device memory owes a vector for each run where runs have gaps in the block.
func TestRequestsBehindManyRunsOfADeviceAreServed(t *testing.T) {
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(1 << 20)
	copy(memory, tcptest.Pattern(len(memory), 5))
	h := serveDevice(a, Options{}, memory)
	for runs := uint64(120); runs < 130; runs++ {
		c := h.dial()
		c.Greet(wire.Hello{Origin: wire.Identity{byte(runs)}, Number: 1})
		read, length := stridedRequest(wire.Read, hostmem.AddressOf(memory)+1, 3, wire.Axis{Count: runs, Stride: 101})
		requests, want := bytes.Clone(read), make([]byte, wire.StatusSize, int(length))
		wire.PutStatus(want, wire.StatusOK)
		for i := range int(runs) {
			want = append(want, memory[1+i*101:][:3]...)
		}
		for range 200 {
			requests = append(requests, read...)
			requests = append(requests, tcptest.ReadV2(memory[7:10])...)
		}
		c.Send(requests)
		c.Expect(want)
		for range 200 {
			c.Expect(want)
			c.ExpectStatus(wire.StatusOK)
			c.Expect(memory[7:10])
		}
	}
}

// A job keeps the device from others until all its runs are copied, and its memory is that of its copies.
func TestRequestsOfManyRunsDoNotShareAJob(t *testing.T) {
	const n, runs = 16, 4096
	a := tcptest.Accelerate(t, tcptest.Blocks(16, 512<<10))
	memory := a.Memory(1 << 20)
	copy(memory, tcptest.Pattern(len(memory), 5))
	c := serveDevice(a, Options{}, memory).dial()
	c.Greet(wire.Hello{Number: 1})
	read, _ := stridedRequest(wire.Read, hostmem.AddressOf(memory), 1, wire.Axis{Count: runs, Stride: 3})
	want := make([]byte, runs)
	for i := range want {
		want[i] = memory[3*i]
	}
	c.Send(bytes.Repeat(read, n))
	for range n {
		c.ExpectStatus(wire.StatusOK)
		c.Expect(want)
	}
	require.GreaterOrEqual(t, a.Staging.Stats(staging.Out).Jobs, uint64(n))
}

// The part of a payload that comes later is placed so that its runs can be scattered together as those before it.
func TestRunsAreScatteredTogetherWhereverTheirPayloadIsCut(t *testing.T) {
	const run, stride, runs = 256, 512, 64
	a := tcptest.Accelerate(t, tcptest.Blocks(4, 512<<10))
	memory := a.Memory(1 << 20)
	c := serveDevice(a, Options{}, memory).dial()
	c.Greet(wire.Hello{Number: 1})
	write, length := stridedRequest(wire.Write, hostmem.AddressOf(memory), run, wire.Axis{Count: runs, Stride: stride})
	payload := tcptest.Pattern(int(length), 3)
	c.Send(tcptest.WriteV2(hostmem.AddressOf(memory)+uintptr(len(memory)/2), []byte("first")), write, payload[:1000])
	c.ExpectStatus(wire.StatusOK)
	c.Send(payload[1000:])
	c.ExpectStatus(wire.StatusOK)
	for i := range runs {
		require.Equal(t, payload[i*run:][:run], memory[i*stride:][:run])
	}
	require.Less(t, a.Count(device.HostToDevice), runs/4)
}

// TestRandomStridedRequestsForSimulatedGPUsMatchAModel sends strided requests, whose runs may overlap, among others. A kernel
// copies most of them.
func TestRandomStridedRequestsForSimulatedGPUsMatchAModel(t *testing.T) {
	simtest.UseCUDA(t, "")
	simtest.NoLeaks(t)
	for seed := range uint64(3) {
		simtest.Seed(t, seed)
		random := rand.New(rand.NewPCG(seed, 4))
		const size = 1 << 20
		gpu := simulate(t, 0, tcptest.Blocks(2+int(seed%3), 512<<10))
		memory := gpu.stretch(size)
		h := serve(t, Options{})
		h.memory.addRange(core.Range{Addr: memory.addr, Length: size}, core.FullAccess, memory.on)
		model, ok := make([]byte, size), make([]byte, wire.StatusSize)
		wire.PutStatus(ok, wire.StatusOK)
		stream, answers := slices.Clone(greeting), []byte(nil)
		for range 100 {
			op := core.Opcode(random.IntN(2))
			first, run, axes, places := randomRuns(random, size)
			if random.IntN(4) == 0 && len(axes) > 0 {
				axes[random.IntN(len(axes))].Stride /= 2
				places = appendPlaces(nil, first, run, axes)
			}
			frame, length := stridedRequest(wire.Opcode(op), memory.addr+uintptr(first), run, axes...)
			if random.IntN(4) == 0 { // a range
				first = random.IntN(size - len(places))
				places = appendPlaces(nil, first, length, nil)
				frame = tcptest.Request(op, true, memory.addr+uintptr(first), length)
			}
			stream, answers = append(stream, frame...), append(answers, ok...)
			sent, answered := payloadOf(op, model, places, random)
			stream, answers = append(stream, sent...), append(answers, answered...)
		}
		got := sendInParts(t, h.dial(), stream, random)
		answer, err := wire.ReadAnswer(bytes.NewReader(got))
		require.NoError(t, err)
		require.True(t, bytes.Equal(answers, got[len(answer.Encode()):]), "seed %d", seed)
		require.True(t, bytes.Equal(model, memory.read()), "seed %d", seed)
		require.NotZero(t, simtest.TakeReport(t).Calls["cuLaunchKernel"], "seed %d", seed)
	}
}
