package core_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem/hostmemtest"
	"kvferry/core/layout"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// onItself submits requests on the engine's own segment, and returns the batch when it is done.
func onItself(t *testing.T, e *core.Engine, reqs ...core.Request) *core.Batch {
	t.Helper()
	b, err := e.AllocateBatch(len(reqs))
	require.NoError(t, err)
	require.NoError(t, e.Submit(b, reqs, nil))
	wait(t, b)
	return b
}

func TestOwnSegmentIsCopied(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	for _, length := range []int{1, 4096, 256 << 10, 256<<10 + 1, 9<<20 + 5} {
		segment, local := pages(t, length+64), pages(t, length+64)
		require.NoError(t, e.Register(at(segment), uint64(len(segment)), "cpu:0", true))
		for _, op := range []core.Opcode{core.Write, core.Read} {
			fill(segment, 1)
			fill(local, 99)
			to, from := segment, local
			if op == core.Read {
				to, from = local, segment
			}
			expected := slices.Concat(to[:3], from[7:7+length], to[3+length:])
			r := core.Request{Opcode: op, Local: at(from[7:]), Remote: uint64(at(to[3:])), Length: uint64(length)}
			if op == core.Read {
				r.Local, r.Remote = at(to[3:]), uint64(at(from[7:]))
			}
			b := onItself(t, e, r)
			require.Equal(t, core.Summary{Tasks: 1, Completed: 1, Bytes: uint64(length)}, b.Summary())
			require.True(t, bytes.Equal(expected, to), "%v of %d bytes", op, length)
		}
		require.NoError(t, e.Unregister(at(segment)))
	}
}

func TestOverlappingRangesAreCopiedAsIfOverABuffer(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	const length = 11 << 20
	memory := pages(t, length+1<<20)
	require.NoError(t, e.Register(at(memory), uint64(len(memory)), "cpu:0", true))
	for _, shift := range []int{0, 1, 4097, 1 << 20} {
		for _, c := range []struct{ to, from int }{{shift, 0}, {0, shift}} {
			fill(memory, 3)
			expected := slices.Clone(memory)
			copy(expected[c.to:c.to+length], memory[c.from:c.from+length])
			b := onItself(t, e, core.Request{
				Opcode: core.Write, Local: at(memory[c.from:]), Remote: uint64(at(memory[c.to:])), Length: length,
			})
			require.NoError(t, b.Err())
			require.True(t, bytes.Equal(expected, memory), "from %d to %d", c.from, c.to)
		}
	}
}

func TestOwnSegmentRefusesWhatItWouldRefuseAPeer(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	memory, local := pages(t, 4*4096), pages(t, 4096)
	base := uint64(at(memory))
	require.NoError(t, e.Register(at(memory), 4096, "cpu:0", true))
	require.NoError(t, e.Register(at(memory)+2*4096, 4096, "cpu:0", false))
	for name, r := range map[string]core.Request{
		"not registered":      {Remote: base + 4096, Length: 8},
		"half registered":     {Remote: base + 4096 - 4, Length: 8},
		"not open to peers":   {Remote: base + 2*4096, Length: 8},
		"address 0":           {Remote: 0, Length: 8},
		"wraps":               {Remote: math.MaxUint64 - 3, Length: 8},
		"longer than allowed": {Remote: base, Length: 1 << 62},
	} {
		for _, op := range []core.Opcode{core.Read, core.Write} {
			r.Opcode, r.Local = op, at(local)
			good := core.Request{Opcode: op, Local: at(local), Remote: base, Length: 8}
			b := onItself(t, e, good, r, good)
			require.Equal(t, []core.State{completed, failed, completed}, states(t, b), "%s, %v", name, op)
			require.Error(t, b.Err())
		}
	}
}

func TestMemoryThatIsNotMappedGivesAnErrorNotACrash(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	const length = 1 << 20
	memory := pages(t, length)
	require.NoError(t, e.Register(at(memory), length, "cpu:0", true))
	hole, err := unix.Mmap(-1, 0, length, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(hole)) })
	require.NoError(t, e.Register(at(hole), length, "cpu:0", true))

	for _, n := range []uint64{1, 4096, length} { // on the caller's goroutine, and on another
		for _, op := range []core.Opcode{core.Read, core.Write} {
			for name, r := range map[string]core.Request{
				"local":   {Opcode: op, Local: at(hole), Remote: uint64(at(memory)), Length: n},
				"remote":  {Opcode: op, Local: at(memory), Remote: uint64(at(hole)), Length: n},
				"NULL":    {Opcode: op, Local: 0, Remote: uint64(at(memory)), Length: n},
				"garbage": {Opcode: op, Local: 0xdead_0000_0000_0000, Remote: uint64(at(memory)), Length: n},
			} {
				b := onItself(t, e, r)
				require.Equal(t, []core.State{failed}, states(t, b), "%s, %v", name, op)
				requireCode(t, status.InvalidArgument, b.Err())
			}
		}
	}
	onItself(t, e, core.Request{Opcode: core.Read, Local: at(memory), Remote: uint64(at(memory)), Length: 8})
	require.NoError(t, e.UnregisterBatch([]uintptr{at(memory), at(hole)}), "no pin is left")
}

func TestAPageThatIsMissingHoldsUpNoOtherCopyWithinTheProcess(t *testing.T) {
	for _, length := range []int{100, 1 << 20} { // of which a caller would copy the first by itself
		for _, op := range []core.Opcode{core.Read, core.Write} {
			for _, side := range []string{"local", "remote"} {
				t.Run(fmt.Sprintf("%v/%d bytes/%s", op, length, side), func(t *testing.T) {
					e := startEngine(t, metadatatest.NewDirectory(), nil)
					missing, good, memory := hostmemtest.New(t, length), pages(t, length), pages(t, 4<<20)
					require.NoError(t, e.Register(at(memory), uint64(len(memory)), "cpu:0", true))
					local, remote := missing.Memory, good
					if side == "remote" {
						local, remote = remote, local
					}
					require.NoError(t, e.Register(at(remote), uint64(length), "cpu:0", true))
					b, err := e.AllocateBatch(1)
					require.NoError(t, err)
					r := core.Request{Opcode: op, Local: at(local), Remote: uint64(at(remote)), Length: uint64(length)}
					require.NoError(t, e.Submit(b, []core.Request{r}, nil))
					missing.AwaitFault(t)

					missing.Collect()
					for _, n := range []int{100, 2 << 20} {
						other := onItself(t, e, core.Request{Opcode: op, Local: at(memory), Remote: uint64(at(memory[2<<20:])), Length: uint64(n)})
						require.NoError(t, other.Err())
					}
					require.False(t, b.Done())
					missing.Release(t)
					wait(t, b)
					require.NoError(t, b.Err())
				})
			}
		}
	}
}

func TestSmallWorkIsCopiedAtOnceUpToAMissingPage(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	const length = 100
	missing, good := hostmemtest.New(t, length), pages(t, 4096)
	fill(good, 1)
	require.NoError(t, e.Register(at(good), 4096, "cpu:0", true))
	b, err := e.AllocateBatch(3)
	require.NoError(t, err)
	write := func(from []byte, to int) core.Request {
		return core.Request{Opcode: core.Write, Local: at(from), Remote: uint64(at(good[to:])), Length: length}
	}
	require.NoError(t, e.Submit(b, []core.Request{write(good, 1000), write(missing.Memory, 2000), write(good, 3000)}, nil))
	require.Equal(t, []core.State{completed, core.Waiting, core.Waiting}, states(t, b))
	require.Equal(t, good[:length], good[1000:][:length])
	missing.AwaitFault(t)
	missing.Collect()
	missing.Release(t)
	wait(t, b)
	require.Equal(t, core.Summary{Tasks: 3, Completed: 3, Bytes: 3 * length}, b.Summary())
	require.Equal(t, good[:length], good[3000:][:length])
	require.NoError(t, e.Unregister(at(good)), "no pin is left")
}

// Tasks that follow each other in a region share a pin. A READ and a WRITE do not.
func TestATaskOfTheOwnSegmentIsRefusedAlthoughThePinOfTheTaskBeforeItsLasts(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	const length = 100
	readable, both, local := pages(t, 4096), pages(t, 4096), pages(t, 4096)
	fill(local, 1)
	for _, memory := range [][]byte{readable, both} {
		clear(memory)
	}
	require.NoError(t, e.RegisterFor([]core.Range{{Addr: at(readable), Length: 4096}}, "cpu:0", core.RemoteRead))
	require.NoError(t, e.Register(at(both), 4096, "cpu:0", true))
	request := func(op core.Opcode, remote []byte) core.Request {
		return core.Request{Opcode: op, Local: at(local), Remote: uint64(at(remote)), Length: length}
	}
	b := onItself(t, e,
		request(core.Read, readable), request(core.Write, readable), request(core.Read, readable), request(core.Write, both),
		core.Request{Opcode: core.Write, Local: at(local), Remote: uint64(at(both[4000:])), Length: length},
	)
	require.Equal(t, []core.State{completed, failed, completed, completed, failed}, states(t, b))
	require.NoError(t, e.UnregisterBatch([]uintptr{at(readable), at(both)}), "no pin is left")
}

func TestMemoryWhosePagesAreMissingIsRegisteredAndHoldsNobodyElseUp(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	missing, memory := hostmemtest.New(t, 4096), pages(t, 4096)
	registered := make(chan error)
	go func() { registered <- e.Register(at(missing.Memory), 4096, "", true) }() // where it is has to be found out
	missing.AwaitFault(t)
	missing.Collect()
	require.NoError(t, e.Register(at(memory), 4096, "", true))
	require.NoError(t, <-registered)
	require.NoError(t, e.Unregister(at(missing.Memory)))
	missing.Release(t)
}

func TestWritingToReadOnlyMemoryGivesAnError(t *testing.T) {
	memory, source := pages(t, 4096), pages(t, 4096)
	require.NoError(t, unix.Mprotect(memory, unix.PROT_READ))
	require.Error(t, core.CopyMemory(at(memory), at(source), 4096))
	require.NoError(t, core.CopyMemory(at(source), at(memory), 4096))
}

func TestDiscardedCopyFreesItsMemory(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	const length = 64 << 20
	memory := pages(t, 2*length)
	require.NoError(t, e.Register(at(memory), 2*length, "cpu:0", true))
	b, err := e.AllocateBatch(8)
	require.NoError(t, err)
	reqs := make([]core.Request, 8)
	for i := range reqs {
		reqs[i] = core.Request{Opcode: core.Write, Local: at(memory), Remote: uint64(at(memory)) + length, Length: length}
	}
	require.NoError(t, e.Submit(b, reqs, nil))
	require.NoError(t, e.DiscardBatch(b))
	require.NoError(t, e.Unregister(at(memory)))
}

// TestAnOfferIsUsedWithinTheProcessThatMadeIt has memory of the host and of devices on both sides, and none of what is offered is
// open to peers otherwise.
func TestAnOfferIsUsedWithinTheProcessThatMadeIt(t *testing.T) {
	p := startStaged(t, &transporttest.Transport{}, nil)
	private := func(memory []byte) []byte {
		_ = p.Unregister(at(memory)) // host memory is not registered yet
		require.NoError(t, p.Register(at(memory), planMemory, "*", false))
		return memory
	}
	r := rand.New(rand.NewPCG(5, 1))
	for name, memory := range map[string][2][]byte{
		"host to host":     {pages(t, planMemory), private(pages(t, planMemory))},
		"host to device":   {pages(t, planMemory), private(p.memory(0, planMemory))},
		"device to host":   {p.memory(0, planMemory), private(pages(t, planMemory))},
		"device to device": {p.memory(0, planMemory), private(p.memory(1, planMemory))},
		"within a device":  {p.memory(0, planMemory), private(p.memory(0, planMemory))},
	} {
		mine := newSide(r, memory[0], uint64(at(memory[0])), 128, 24, true)
		for _, op := range []core.Opcode{core.Write, core.Read} {
			for _, limit := range []int{0, 100} {
				t.Run(fmt.Sprintf("%s, %v, limit %d", name, op, limit), func(t *testing.T) {
					fill(memory[0], 1)
					fill(memory[1], 2)
					offered := newSide(r, memory[1], uint64(at(memory[1])), 16, 24, false)
					offer, err := p.Offer(offered.place, core.OfferOptions{Access: 1 << op})
					require.NoError(t, err)
					there, err := layout.ParseOffer(offer.Text())
					require.NoError(t, err)
					use := func(op core.Opcode, blocks []uint64) error {
						there.Blocks = blocks
						offered.place = there.Place
						b, err := p.SubmitPlanned(plannedTo(t, core.LocalSegment, op, mine, offered), limit)
						require.NoError(t, err)
						wait(t, b)
						defer func() { require.NoError(t, p.FreeBatch(b)) }()
						return b.Err()
					}
					others := slices.Clone(there.Blocks)
					others[0] = outside(others)
					planned := plannedTo(t, core.LocalSegment, op, mine, offered)
					wantLocal, wantOffered := moved(&planned, memory[0], memory[1], uint64(at(memory[1])))
					require.NoError(t, use(op, there.Blocks))
					require.True(t, bytes.Equal(wantLocal, memory[0]), "local memory")
					require.True(t, bytes.Equal(wantOffered, memory[1]), "what is offered")

					blocks := there.Blocks
					require.ErrorIs(t, use(core.Read+core.Write-op, blocks), core.ErrNotOffered)
					require.ErrorIs(t, use(op, others), core.ErrNotOffered)
					require.NoError(t, offer.Revoke())
					require.ErrorIs(t, use(op, blocks), core.ErrRevoked)
				})
			}
		}
	}
}

// outside is the number of a block that is not among some.
func outside(blocks []uint64) (number uint64) {
	for slices.Contains(blocks, number) {
		number++
	}
	return number
}
