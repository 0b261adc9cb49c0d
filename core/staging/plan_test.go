package staging

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"kvferry/core/device"

	"github.com/stretchr/testify/require"
)

// The planner sees addresses only. In these tests device memory, a lease and the gather block are arrays that begin at
// made-up addresses.
const (
	deviceAt = uintptr(0x10000000)
	leaseAt  = uintptr(0x20000000)
	gatherAt = uintptr(0x30000000)

	testBelow     = 1024
	testCapacity  = 8192
	testAlignment = 64
)

func testPlanner(dir Direction) *planner {
	traits := device.Traits{Alignment: testAlignment, Ways: device.WaysOf(device.Single, device.Gather), Default: device.Gather}
	p := newPlanner(dir, traits, Options{GatherBelow: testBelow, BlockSize: testCapacity})
	p.gather = gatherAt
	return &p
}

// with adds a way to those of the device.
func (p *planner) with(way device.Way) { p.ways.able |= device.WaysOf(way) }

// show writes a plan as its calls: "within 2" is a call for two copies within the device.
func show(steps []step) string {
	var calls []string
	for _, s := range steps {
		name := [...]string{"in", "out", "within"}[s.kind]
		if s.way != device.Single {
			name = s.way.String()
		}
		calls = append(calls, fmt.Sprintf("%s %d", name, len(s.copies)))
	}
	return strings.Join(calls, ", ")
}

// scattered is a move of each length, far from each other on the device; offset is added to each address there.
func scattered(offset uintptr, lengths ...uint64) []Move {
	var moves []Move
	end := uint64(0)
	for i, length := range lengths {
		addr := deviceAt + uintptr(i)*4096 + offset
		at := place(end, addr, length, testBelow, testAlignment)
		moves = append(moves, Move{addr, leaseAt + uintptr(at), length})
		end = at + length
	}
	return moves
}

func TestPlans(t *testing.T) {
	adjacent := []Move{{deviceAt, leaseAt, 100}, {deviceAt + 100, leaseAt + 100, 0}, {deviceAt + 100, leaseAt + 100, 100}}
	packed := []Move{{deviceAt, leaseAt, 100}, {deviceAt + 4096, leaseAt + 100, 100}, {deviceAt + 8192, leaseAt + 200, 100}}
	overlapping := []Move{{deviceAt, leaseAt, 100}, {deviceAt + 64, leaseAt + 64, 100}, {deviceAt + 128, leaseAt, 100}}
	far := []Move{{deviceAt, leaseAt, 100}, {deviceAt + 4096, leaseAt + 2*testCapacity, 100}}
	late := []Move{{deviceAt + 9000, leaseAt + 100, 10}, {deviceAt, leaseAt, 64}, {deviceAt + 4096, leaseAt + 64, 100}}
	apart := []Move{{deviceAt, leaseAt, 100}, {deviceAt + 4096, leaseAt + 192, 100}}
	oneUnaligned := scattered(0, 100, 100, 100)
	oneUnaligned[1].Device += 7
	oneUnaligned[1].Block += 7
	for _, c := range []struct {
		name              string
		moves             []Move
		out, in           string // plans without batches
		outBatch, inBatch string // and with
	}{
		{"nothing", nil, "", "", "", ""},
		{"empty moves", scattered(0, 0, 0), "", "", "", ""},
		{"one small move", scattered(0, 100), "out 1", "in 1", "out 1", "in 1"},
		{"adjacent moves", adjacent, "out 1", "in 1", "out 1", "in 1"},
		{"small moves", scattered(0, 100, 200, 300), "within 3, out 1", "in 1, within 3", "within 3, out 1", "in 1, within 3"},
		{"big moves", scattered(0, 1024, 2000), "out 2", "in 2", "out 2", "in 2"},
		{"a big and a small move", scattered(0, 1024, 100), "out 2", "in 2", "out 2", "in 2"},
		{"a big one among small moves", scattered(0, 100, 100, 1024, 100, 100),
			"within 4, out 3", "in 2, within 2, in 1, within 2", "within 4, out 3", "in 2, within 2, in 1, within 2"},
		{"unaligned moves", scattered(7, 100, 100, 100), "within 3, out 1", "in 3", "within 3, out 1", "batch 3"},
		{"an unaligned move", oneUnaligned, "within 3, out 1", "in 1, within 1, in 1, within 1",
			"within 3, out 1", "in 1, within 1, in 1, within 1"},
		{"moves that were not placed", packed, "out 3", "in 3", "batch 3", "batch 3"},
		{"overlapping moves", overlapping, "out 3", "in 1, within 3", "out 3", "in 1, within 3"},
		{"moves that overlap one before them", late, "out 3", "in 2, within 2", "out 3", "in 2, within 2"},
		{"moves an aligned unit apart", apart, "out 2", "in 1, within 2", "batch 2", "in 1, within 2"},
		{"moves too far apart for the gather block", far, "out 2", "in 2", "batch 2", "batch 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, in := testPlanner(Out), testPlanner(In)
			require.Equal(t, c.out, show(out.plan(c.moves)))
			require.Equal(t, c.in, show(in.plan(c.moves)))
			out.with(device.Batch)
			in.with(device.Batch)
			require.Equal(t, c.outBatch, show(out.plan(c.moves)))
			require.Equal(t, c.inBatch, show(in.plan(c.moves)))
		})
	}
}

// batchingPlanner is of a device that does not gather.
func batchingPlanner(dir Direction, below uint64) *planner {
	traits := device.Traits{Alignment: 1, Ways: device.WaysOf(device.Single, device.Batch), Default: device.Batch}
	p := newPlanner(dir, traits, Options{GatherBelow: below, BlockSize: testCapacity})
	return &p
}

func TestADeviceThatDoesNotGatherCopiesWholeJobsInBatches(t *testing.T) {
	overlapping := []Move{{deviceAt, leaseAt, 100}, {deviceAt + 64, leaseAt + 64, 100}}
	for _, c := range []struct {
		name            string
		moves           []Move
		want, noBatches string // the plans for the way out; those for the way in are alike
	}{
		{"nothing", nil, "", ""},
		{"one move", scattered(0, 100), "out 1", "out 1"},
		{"small moves", scattered(0, 100, 200, 300), "batch 3", "out 3"},
		{"moves of any length and place", scattered(7, 100, 1024, 2000), "batch 3", "out 3"},
		{"overlapping moves", overlapping, "out 2", "out 2"},
	} {
		for _, dir := range []Direction{Out, In} {
			p := batchingPlanner(dir, testBelow)
			shown := strings.ReplaceAll(show(p.plan(c.moves)), "in", "out")
			require.Equal(t, c.want, shown, c.name)
			p.ways.lose(device.ErrNoBatches)
			require.Equal(t, c.noBatches, strings.ReplaceAll(show(p.plan(c.moves)), "in", "out"), c.name)
			require.False(t, p.wanted, "a gather block")
		}
	}
	require.Equal(t, "out 3", show(batchingPlanner(Out, 0).plan(scattered(0, 100, 200, 300))), "batches can be turned off")
}

func TestWithoutAGatherBlockMovesAreCopiedOneByOne(t *testing.T) {
	p := testPlanner(Out)
	p.gather = 0
	require.Equal(t, "out 3", show(p.plan(scattered(0, 100, 200, 300))))
	require.True(t, p.wanted, "the planner would have used a gather block")
	require.Zero(t, p.gathered)
	require.Equal(t, "out 2", show(p.plan(scattered(0, 1024, 2000))))
	require.False(t, p.wanted)
}

func TestGatheringCanBeTurnedOff(t *testing.T) {
	p := testPlanner(Out)
	p.below = 0
	require.Equal(t, "out 3", show(p.plan(scattered(0, 100, 200, 300))))
}

func TestPlanningAgainAllocatesNothing(t *testing.T) {
	for _, dir := range []Direction{Out, In} {
		p, moves := testPlanner(dir), scattered(0, slices.Repeat([]uint64{100}, 30)...)
		slices.Reverse(moves)
		require.Zero(t, testing.AllocsPerRun(10, func() { p.plan(moves) }))
	}
}

func TestPlaceKeepsOffsetsCongruentAndUnitsApart(t *testing.T) {
	for range 1000 {
		end, addr, length := rand.Uint64N(4096), uintptr(rand.Uint64N(1<<40)), rand.Uint64N(2*testBelow)
		at := place(end, addr, length, testBelow, testAlignment)
		require.GreaterOrEqual(t, at, end)
		require.Less(t, at, end+2*testAlignment)
		if length < testBelow {
			require.Equal(t, uint64(addr)%testAlignment, at%testAlignment)
			require.GreaterOrEqual(t, at/testAlignment*testAlignment, end)
		}
	}
}

// memories are what the addresses stand for.
type memories struct {
	device, lease, gather []byte
}

func newMemories(r *rand.ChaCha8) *memories {
	m := &memories{make([]byte, 1<<16), make([]byte, 1<<15), make([]byte, testCapacity)}
	for _, b := range [][]byte{m.device, m.lease, m.gather} {
		r.Read(b)
	}
	return m
}

func (m *memories) clone() *memories {
	return &memories{slices.Clone(m.device), slices.Clone(m.lease), slices.Clone(m.gather)}
}

func (m *memories) at(addr uintptr, length uint64) []byte {
	switch {
	case addr >= gatherAt:
		return m.gather[addr-gatherAt:][:length]
	case addr >= leaseAt:
		return m.lease[addr-leaseAt:][:length]
	}
	return m.device[addr-deviceAt:][:length]
}

// do executes a plan. The copies of a batch are done in any order.
func (m *memories) do(t *testing.T, steps []step, r *rand.Rand) {
	for _, s := range steps {
		copies := slices.Clone(s.copies)
		if s.way != device.Single {
			r.Shuffle(len(copies), func(i, j int) { copies[i], copies[j] = copies[j], copies[i] })
		}
		for _, c := range copies {
			require.Equal(t, s.kind == device.DeviceToHost, c.Dst >= leaseAt && c.Dst < gatherAt)
			require.Equal(t, s.kind == device.HostToDevice, c.Src >= leaseAt && c.Src < gatherAt)
			if s.kind == device.WithinDevice {
				require.Zero(t, (c.Dst|c.Src)%testAlignment)
			}
			copy(m.at(c.Dst, c.Length), m.at(c.Src, c.Length))
		}
	}
}

// naively executes the moves as they are.
func (m *memories) naively(dir Direction, moves []Move) {
	for _, v := range moves {
		dst, src := m.at(v.Block, v.Length), m.at(v.Device, v.Length)
		if dir == In {
			dst, src = src, dst
		}
		copy(dst, src)
	}
}

// skipped marks the bytes of the lease that a plan may overwrite: those before each move that share its aligned unit, or
// lie between that and the end of the move before.
func skipped(moves []Move) []bool {
	may := make([]bool, 1<<15)
	for _, v := range moves {
		at := v.Block - leaseAt
		for i := at; i > 0 && at-i < 2*testAlignment; i-- {
			may[i-1] = true
		}
	}
	for _, v := range moves {
		for i := range v.Length {
			may[uint64(v.Block-leaseAt)+i] = false
		}
	}
	return may
}

func randomMoves(r *rand.Rand) []Move {
	var moves []Move
	end, placed := uint64(0), r.IntN(4) > 0
	offset := uintptr(0)
	if r.IntN(2) == 0 {
		offset = uintptr(r.IntN(testAlignment))
	}
	for range r.IntN(24) {
		v := Move{Device: deviceAt + uintptr(r.IntN(700)*testAlignment) + offset, Length: r.Uint64N(200)}
		switch r.IntN(8) {
		case 0:
			v.Length = testBelow + r.Uint64N(500)
		case 1:
			v.Device += uintptr(r.IntN(testAlignment))
		case 2:
			if n := len(moves); n > 0 {
				v.Device = moves[n-1].Device + uintptr(moves[n-1].Length)
			}
		}
		at := end
		if placed {
			at = place(end, v.Device, v.Length, testBelow, testAlignment)
		} else if r.IntN(8) == 0 {
			at = r.Uint64N(1 << 13)
		}
		v.Block = leaseAt + uintptr(at)
		end = at + v.Length
		moves = append(moves, v)
	}
	if r.IntN(4) == 0 {
		r.Shuffle(len(moves), func(i, j int) { moves[i], moves[j] = moves[j], moves[i] })
	}
	return moves
}

// TestPlansDoWhatTheMovesSay executes plans for random moves, placed or not, overlapping or not, in any order.
func TestPlansDoWhatTheMovesSay(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, whatever processors there are")
	}
	var gathered, batches int
	for seed := range uint64(400) {
		source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
		r := rand.New(source)
		moves := randomMoves(r)
		for _, dir := range []Direction{Out, In} {
			p := testPlanner(dir)
			if r.IntN(4) == 0 {
				p.ways.prefer = device.Batch
			}
			if r.IntN(3) == 0 {
				p.with(device.Batch)
			}
			before := newMemories(source)
			want, got := before.clone(), before.clone()
			want.naively(dir, moves)
			steps := p.plan(moves)
			got.do(t, steps, r)
			gathered += p.gathered
			if len(steps) > 0 && steps[0].way == device.Batch {
				batches++
			}
			require.Equal(t, want.device, got.device, "seed %d", seed)
			may := skipped(moves)
			for i := range want.lease {
				if want.lease[i] != got.lease[i] && !(dir == Out && may[i]) {
					t.Fatalf("seed %d, %v: byte %d of the lease is wrong", seed, dir, i)
				}
			}
		}
	}
	require.Greater(t, gathered, 200, "the test gathers")
	require.Greater(t, batches, 20, "and uses batches")
}
