package staging

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/hostmem"

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
		calls = append(calls, fmt.Sprintf("%s %d", name, len(copiesOf(s))))
	}
	return strings.Join(calls, ", ")
}

func move(onDevice, inLease uintptr, length uint64) Move {
	return Move{Device: onDevice, Block: inLease, Length: length}
}

// scattered is a move of each length, far from each other on the device; offset is added to each address there.
func scattered(offset uintptr, lengths ...uint64) []Move {
	var moves []Move
	end := uint64(0)
	for i, length := range lengths {
		addr := deviceAt + uintptr(i)*4096 + offset
		at := place(end, addr, length, testBelow, testAlignment)
		moves = append(moves, move(addr, leaseAt+uintptr(at), length))
		end = at + length
	}
	return moves
}

func TestPlans(t *testing.T) {
	adjacent := []Move{move(deviceAt, leaseAt, 100), move(deviceAt+100, leaseAt+100, 0), move(deviceAt+100, leaseAt+100, 100)}
	packed := []Move{move(deviceAt, leaseAt, 100), move(deviceAt+4096, leaseAt+100, 100), move(deviceAt+8192, leaseAt+200, 100)}
	overlapping := []Move{move(deviceAt, leaseAt, 100), move(deviceAt+64, leaseAt+64, 100), move(deviceAt+128, leaseAt, 100)}
	far := []Move{move(deviceAt, leaseAt, 100), move(deviceAt+4096, leaseAt+2*testCapacity, 100)}
	late := []Move{move(deviceAt+9000, leaseAt+100, 10), move(deviceAt, leaseAt, 64), move(deviceAt+4096, leaseAt+64, 100)}
	apart := []Move{move(deviceAt, leaseAt, 100), move(deviceAt+4096, leaseAt+192, 100)}
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
	overlapping := []Move{move(deviceAt, leaseAt, 100), move(deviceAt+64, leaseAt+64, 100)}
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

// copiesOf are the copies of a step, as a device makes them.
func copiesOf(s step) []device.Copy {
	copies := slices.Clone(s.copies)
	if s.shape != nil {
		for _, base := range s.shape.at {
			copies = append(copies, copiesOfShape(&s.shape.Strided, base, 0)...)
		}
	}
	for i := range uintptr(s.rows.Count) {
		to, from := s.rows.Dst+i*uintptr(s.rows.DstPitch), s.rows.Src+i*uintptr(s.rows.SrcPitch)
		copies = append(copies, device.Copy{Dst: to, Src: from, Length: s.rows.Length})
	}
	return copies
}

// copiesOfShape are the copies of a group, from a dimension on.
func copiesOfShape(s *device.Strided, at device.Base, dimension int) (copies []device.Copy) {
	if dimension == device.Dimensions {
		return []device.Copy{{Dst: at.Dst, Src: at.Src, Length: s.Length}}
	}
	for range s.Counts[dimension] {
		copies = append(copies, copiesOfShape(s, at, dimension+1)...)
		at.Dst += uintptr(s.DstStrides[dimension])
		at.Src += uintptr(s.SrcStrides[dimension])
	}
	return copies
}

// do executes a plan. The copies of a step that is not Single are done in any order.
func (m *memories) do(t *testing.T, steps []step, r *rand.Rand) {
	for _, s := range steps {
		copies := copiesOf(s)
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
	for _, v := range byByte(moves) {
		dst, src := m.at(v.Block, v.Length), m.at(v.Device, v.Length)
		if dir == In {
			dst, src = src, dst
		}
		copy(dst, src)
	}
}

// byByte has a move for each byte of the strided moves.
func byByte(moves []Move) (all []Move) {
	for _, v := range moves {
		if v.Runs == nil {
			all = append(all, v)
			continue
		}
		position := uint64(0)
		for run := range v.Runs.Runs() {
			for i := range v.Runs.Run {
				if position >= v.Skip && position < v.Skip+v.Length {
					all = append(all, move(run+uintptr(i), v.Block+uintptr(position-v.Skip), 1))
				}
				position++
			}
		}
	}
	return all
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

// planChecked plans moves, executes the plan, and compares what it has done with what the moves say.
func planChecked(t *testing.T, p *planner, moves []Move, before *memories, r *rand.Rand, seed uint64) []step {
	want, got := before.clone(), before.clone()
	want.naively(p.dir, moves)
	steps := p.plan(moves)
	got.do(t, steps, r)
	require.Equal(t, want.device, got.device, "seed %d", seed)
	may := skipped(moves)
	for i := range want.lease {
		if want.lease[i] != got.lease[i] && !(p.dir == Out && may[i]) {
			t.Fatalf("seed %d, %v: byte %d of the lease is wrong", seed, p.dir, i)
		}
	}
	return steps
}

// TestPlansDoWhatTheMovesSay executes plans for random moves, placed or not, overlapping or not, in any order.
func TestPlansDoWhatTheMovesSay(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, whatever processors there are")
	}
	var gathered int
	made := map[device.Way]int{} // steps
	for seed := range uint64(400) {
		source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
		r := rand.New(source)
		moves := randomMoves(r)
		for _, dir := range []Direction{Out, In} {
			p := testPlanner(dir)
			switch r.IntN(6) {
			case 0:
				p.ways.prefer = device.Batch
			case 1:
				p.with(device.Kernel)
				p.ways.prefer = device.Kernel
			case 2:
				p.with(device.Matrix)
				p.ways.prefer, p.least = device.Matrix, 2
				moves = append(moves, randomRows(r)...)
			case 3:
				p.with(device.Kernel)
				p.with(device.Matrix)
				p.ways.table, p.least = randomTable(r), 2
			}
			if r.IntN(3) == 0 {
				p.with(device.Batch)
			}
			steps := planChecked(t, p, moves, newMemories(source), r, seed)
			gathered += p.gathered
			for _, s := range steps {
				made[s.way]++
			}
		}
	}
	require.Greater(t, gathered, 200, "the test gathers")
	for _, way := range []device.Way{device.Single, device.Batch, device.Kernel, device.Matrix} {
		require.Greater(t, made[way], 20, "and makes steps of the way %v", way)
	}
}

// TestPlansOfStridedMovesDoWhatTheMovesSay does the same with strided moves among others, which begin and end anywhere in a stream.
func TestPlansOfStridedMovesDoWhatTheMovesSay(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, whatever processors there are")
	}
	shapes, parts, runs := 0, 0, 0
	for seed := range uint64(400) {
		source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
		r := rand.New(source)
		moves := randomStridedMoves(r)
		for _, dir := range []Direction{Out, In} {
			p := testPlanner(dir)
			if r.IntN(4) > 0 {
				p = kernelPlanner(dir)
			} else if r.IntN(2) == 0 {
				p.with(device.Matrix)
				p.least = 2
			}
			if r.IntN(4) == 0 {
				p.ways.table = randomTable(r)
			}
			steps := planChecked(t, p, moves, newMemories(source), r, seed)
			for _, s := range steps {
				if s.shape != nil {
					shapes, parts = shapes+1, parts+len(s.shape.at)
				} else {
					runs += len(s.copies)
				}
			}
		}
	}
	require.Greater(t, shapes, 100, "the test makes strided copies")
	require.Greater(t, parts, shapes, "and several of one shape together")
	require.Greater(t, runs, 1000, "and copies runs where they may overlap, or where there is no kernel")
}

// kernelPlanner is of a device that copies short moves by a kernel.
func kernelPlanner(dir Direction) *planner {
	p := testPlanner(dir)
	p.with(device.Kernel)
	p.ways.prefer = device.Kernel
	return p
}

// Through the host a bus is the limit, and copy engines fill it with blocks of this length. Within a device they do not fill anything.
func TestBlocksThatCopyEnginesSendThroughTheHostAreCopiedWithinADeviceByAKernel(t *testing.T) {
	traits := device.Traits{
		AnyAddress: true, Alignment: 1, Default: device.Kernel,
		Ways: device.WaysOf(device.Batch, device.Kernel), Within: device.WaysOf(device.Batch, device.Kernel),
	}
	for dir, want := range map[Direction]device.Way{Out: device.Batch, In: device.Batch, Direct: device.Kernel} {
		p := newPlanner(dir, traits, Options{GatherBelow: 256 << 10, BlockSize: 2 << 20})
		steps := p.plan(apart(64<<10, 16))
		require.Len(t, steps, 1)
		require.Equal(t, want, steps[0].way, "%v", dir)
		require.Equal(t, device.Batch, p.plan(apart(256<<10, 4))[0].way, "%v, long blocks", dir)
	}
}

// apart are moves of one length with a gap behind each.
func apart(length uint64, count int) (moves []Move) {
	for i := range uintptr(count) {
		at := 2 * i * uintptr(length)
		moves = append(moves, Move{Device: deviceAt + at, Block: leaseAt + at, Length: length})
	}
	return moves
}

// A kernel may only be told of memory that is there, and between two layers there may be none.
func TestStridedCopiesDoNotReachFromOneLayerToTheNext(t *testing.T) {
	layers := hostmem.Strided{Base: deviceAt, Run: 256, Count: 2, Axes: [hostmem.MaxAxes]hostmem.Axis{
		{Count: 8, Stride: 1 << 20}, {Count: 16, Stride: 512},
	}}
	for _, dir := range []Direction{Out, In} {
		steps := kernelPlanner(dir).plan([]Move{{Block: leaseAt, Length: layers.Bytes(), Runs: &layers}})
		require.Len(t, steps, 1, "one call copies all layers")
		require.Len(t, steps[0].shape.at, 8)
		require.Equal(t, [device.Dimensions]uint32{1, 1, 1, 16}, steps[0].shape.Counts)
	}
}

// Requests are cut where a block of staging memory ends, which may be anywhere in a run.
func TestPartsOfOneStridedMoveAreCopiedByAKernelWhereverItBeginsAndEnds(t *testing.T) {
	heads := hostmem.Strided{Base: deviceAt, Run: 256, Count: 2, Axes: [hostmem.MaxAxes]hostmem.Axis{
		{Count: 8, Stride: 256}, {Count: 16, Stride: 2048},
	}}
	for range 100 {
		skip := rand.Uint64N(heads.Bytes() / 2)
		length := heads.Bytes()/2 - rand.Uint64N(4096)
		steps := kernelPlanner(In).plan([]Move{{Block: leaseAt, Length: length, Runs: &heads, Skip: skip}})
		copied := uint64(0)
		for _, s := range steps {
			if s.shape != nil {
				copied += uint64(len(copiesOf(s))) * 256
			}
		}
		require.Greater(t, copied+8*256, length, "all but a few runs at both ends")
	}
}

// kernelOrGather is a table by which two copies are gathered fastest, and more of them are made by a kernel.
func kernelOrGather() *device.Table {
	table := new(device.Table)
	for i := range table.Rows {
		row := &table.Rows[i]
		row.Few, row.Many, row.Measured = 2, 4, device.WaysOf(device.Single, device.Gather, device.Kernel)
		row.Times[device.Single] = device.Times{Few: 1000, Many: 2000}
		row.Times[device.Gather] = device.Times{Few: 50, Many: 1000}
		row.Times[device.Kernel] = device.Times{Few: 100, Many: 100}
	}
	return table
}

// What a kernel has written lies in the lease between the parts of runs at both ends, where it is no gap that may be overwritten.
func TestGatheringDoesNotOverwriteWhatAKernelWritesInTheLease(t *testing.T) {
	runs := hostmem.Strided{Base: deviceAt, Run: 16, Count: 1, Axes: [hostmem.MaxAxes]hostmem.Axis{{Count: 5, Stride: testAlignment}}}
	moves := []Move{{Block: leaseAt + 8, Length: 8 + 3*16 + 8, Runs: &runs, Skip: 8}}
	p := kernelPlanner(Out)
	p.ways.table = kernelOrGather()
	source := rand.NewChaCha8([32]byte{})
	want := newMemories(source)
	got := want.clone()
	want.naively(Out, moves)
	steps := p.plan(moves)
	require.NotNil(t, steps[0].shape)
	got.do(t, steps, rand.New(source))
	require.True(t, slices.Equal(want.lease, got.lease))
}

// Peers choose how many shapes a job has, and which of them has many places.
func TestPlansOfManyShapesKeepLittleMemory(t *testing.T) {
	const rounds, places = 64, 8 << 10
	p := kernelPlanner(In)
	for i := range uint64(rounds) {
		var moves []Move
		block := leaseAt
		for k := range i + 1 {
			runs := hostmem.Strided{Base: deviceAt + uintptr(k)<<12, Run: 1, Count: 1}
			runs.Axes[0] = hostmem.Axis{Count: 2, Stride: int64(k) + 2}
			if k == i {
				runs.Base += 1 << 20
				runs.Axes[1], runs.Count = runs.Axes[0], 2
				runs.Axes[0] = hostmem.Axis{Count: places, Stride: farStep}
			}
			moves = append(moves, Move{Block: block, Length: runs.Bytes(), Runs: &runs})
			block += uintptr(runs.Bytes())
		}
		p.plan(moves)
	}
	kept := 0
	for _, s := range p.shapes[:cap(p.shapes)] {
		kept += cap(s.at)
	}
	require.Less(t, kept, 2*rounds*mostPlaces)
}

// randomStridedMoves are strided moves and others, one after the other in the lease.
func randomStridedMoves(r *rand.Rand) []Move {
	var moves []Move
	end := uint64(0)
	alike := randomStrided(r)
	for i := range r.IntN(6) {
		v := Move{Device: deviceAt + uintptr(r.IntN(1<<15)), Length: 1 + r.Uint64N(200)}
		switch r.IntN(4) {
		case 0:
		case 1:
			runs := randomStrided(r)
			if runs.Count > 0 && r.IntN(4) == 0 {
				runs.Axes[0].Stride /= 2 // some bytes may belong to several runs
			}
			v.Runs, v.Skip = &runs, r.Uint64N(runs.Bytes())
			v.Length = 1 + r.Uint64N(runs.Bytes()-v.Skip)
		case 2: // between the others of its kind, as blocks are that have a part in each layer
			count := uint64(1 + r.IntN(3))
			runs := hostmem.Strided{Base: deviceAt + uintptr(i)<<9, Run: 32, Count: 3, Axes: [hostmem.MaxAxes]hostmem.Axis{
				{Count: count, Stride: 4 << 10}, {Count: 2, Stride: 32}, {Count: 4, Stride: 100},
			}}
			v.Runs, v.Length = &runs, runs.Bytes()
		default:
			runs := alike
			runs.Base += uintptr(i) << 13
			v.Runs, v.Length = &runs, runs.Bytes()
		}
		v.Length = min(v.Length, 4<<10)
		v.Block = leaseAt + uintptr(end)
		end += v.Length + r.Uint64N(50)
		moves = append(moves, v)
	}
	return moves
}

// randomStrided is strided memory of at most 8 KiB.
func randomStrided(r *rand.Rand) hostmem.Strided {
	s := hostmem.Strided{Base: deviceAt, Run: 1 + r.Uint64N(100), Count: r.IntN(hostmem.MaxAxes + 1)}
	extent := s.Run
	for i := s.Count - 1; i >= 0; i-- {
		stride := extent + r.Uint64N(20)
		count := 1 + r.Uint64N(min(3, 8<<10/stride))
		if extent+(count-1)*stride > 8<<10 {
			count = 1
		}
		s.Axes[i] = hostmem.Axis{Count: count, Stride: int64(stride)}
		extent += (count - 1) * stride
		if r.IntN(4) == 0 {
			s.Base += uintptr((count - 1) * stride)
			s.Axes[i].Stride = -int64(stride)
		}
	}
	return s
}

// randomRows are moves at one distance.
func randomRows(r *rand.Rand) []Move {
	length := 1 + r.Uint64N(300)
	return rows(2+r.IntN(30), length, uintptr(length+r.Uint64N(400)), uintptr(length+r.Uint64N(100)))
}

// randomTable has a random fastest way for each length.
func randomTable(r *rand.Rand) *device.Table {
	table := new(device.Table)
	for i := range table.Rows {
		row := &table.Rows[i]
		row.Few, row.Many, row.Measured = 2, 64, 1<<device.WayCount-1
		for way := range row.Times {
			few := time.Duration(r.IntN(1000))
			row.Times[way] = device.Times{Few: few, Many: few + time.Duration(r.IntN(10000))}
		}
	}
	return table
}

// rows are moves of one length, so far apart on the device and in the lease.
func rows(count int, length uint64, onDevice, inLease uintptr) []Move {
	var moves []Move
	for i := range uintptr(count) {
		moves = append(moves, move(deviceAt+i*onDevice, leaseAt+i*inLease, length))
	}
	return moves
}

func TestMovesAtOneDistanceAreTheRowsOfAMatrix(t *testing.T) {
	even := rows(12, 100, 512, 128)
	shorter := slices.Clone(even)
	shorter[11].Length--
	backwards := slices.Clone(even)
	slices.Reverse(backwards)
	late := append([]Move{move(deviceAt+20000, leaseAt+20000, 100)}, even...)
	broken := slices.Clone(even)
	broken[6].Device += 64
	for name, c := range map[string]struct {
		moves []Move
		want  string
	}{
		"all":                       {even, "matrix 12"},
		"all but the last":          {shorter, "matrix 11, out 1"},
		"all but the first":         {late, "matrix 12, out 1"},
		"none, in the wrong order":  {backwards, "batch 12"},
		"none, since there are few": {rows(7, 100, 512, 128), "batch 7"},
		"none, since runs are few":  {broken, "batch 12"},
		"none, that overlap":        {rows(12, 100, 512, 64), "batch 12"},
		"all, of one block":         {rows(1, 100, 512, 128), "out 1"},
	} {
		for _, dir := range []Direction{Out, In} {
			p := batchingPlanner(dir, testBelow)
			p.with(device.Matrix)
			p.ways.prefer = device.Matrix
			want := c.want
			if dir == In {
				want = strings.ReplaceAll(want, "out", "in")
			}
			if name == "none, that overlap" {
				want = map[Direction]string{Out: "out 12", In: "batch 12"}[dir]
			}
			require.Equal(t, want, show(p.plan(c.moves)), name)
		}
	}
}

// Runs of a strided move lie without gaps in the lease. Of an odd length, they cannot be gathered.
func TestRunsThatCannotBeGatheredAreTheRowsOfAMatrix(t *testing.T) {
	heads := func(run uint64) []Move { // of two layers
		s := hostmem.Strided{Base: deviceAt, Run: run, Count: 2, Axes: [hostmem.MaxAxes]hostmem.Axis{{Count: 3, Stride: 1 << 20}, {Count: 16, Stride: 512}}}
		return []Move{{Block: leaseAt, Length: s.Bytes(), Runs: &s}}
	}
	gatherIsFastest := &device.Table{}
	for row := range gatherIsFastest.Rows {
		gatherIsFastest.Rows[row] = device.Row{Few: 4, Many: 64, Measured: device.WaysOf(device.Single, device.Batch, device.Gather, device.Matrix)}
		for way, each := range map[device.Way]time.Duration{device.Gather: 1, device.Matrix: 2, device.Batch: 8, device.Single: 16} {
			gatherIsFastest.Rows[row].Times[way] = device.Times{Few: 4 * each * time.Microsecond, Many: 64 * each * time.Microsecond}
		}
	}
	for name, c := range map[string]struct {
		moves   []Move
		batches bool
		table   *device.Table
		out, in string
	}{
		"odd, without batches":           {heads(100), false, nil, "matrix 16, matrix 16, matrix 16", "matrix 16, matrix 16, matrix 16"},
		"odd, measured, without batches": {heads(100), false, gatherIsFastest, "matrix 16, matrix 16, matrix 16", "matrix 16, matrix 16, matrix 16"},
		"odd, with batches":              {heads(100), true, nil, "batch 48", "batch 48"},
		"whole units":                    {heads(64), false, nil, "within 48, out 1", "in 1, within 48"},
		"whole units, measured":          {heads(64), true, gatherIsFastest, "within 48, out 1", "in 1, within 48"},
		"one layer, measured":            {rows(16, 100, 512, 100), true, gatherIsFastest, "matrix 16", "matrix 16"},
		"too long to be gathered":        {rows(16, testBelow, 4096, testBelow+1), false, nil, "out 16", "in 16"},
	} {
		for _, dir := range []Direction{Out, In} {
			p := testPlanner(dir)
			p.with(device.Matrix)
			if c.batches {
				p.with(device.Batch)
			}
			p.ways.table = c.table
			require.Equal(t, []string{Out: c.out, In: c.in}[dir], show(p.plan(c.moves)), "%s, %v", name, dir)
		}
	}
}
