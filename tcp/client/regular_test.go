package client

import (
	"math/rand/v2"
	"slices"
	"testing"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/metadata"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// run is a run of bytes that a piece moves.
type run struct {
	op            core.Opcode
	local, remote uint64
	length        uint64
}

// runsOf are what a piece moves, in order, a byte after the other.
func runsOf(p *piece) (all []run) {
	if p.strided == nil {
		return []run{{p.op, uint64(p.local), p.remote, p.length}}
	}
	s := p.strided
	remote := hostmem.Strided{Base: uintptr(p.remote), Run: s.frame.Run, Count: s.axes}
	for i, a := range s.frame.Axes[:s.axes] {
		remote.Axes[i] = hostmem.Axis(a)
	}
	local := s.memory
	if local.Count == 0 { // the payload lies together
		local.Base, local.Run = p.local, p.length
	}
	var near []uint64
	for at := range local.Runs() {
		for i := range local.Run {
			near = append(near, uint64(at)+i)
		}
	}
	for at := range remote.Runs() {
		all = append(all, run{p.op, near[0], uint64(at), remote.Run})
		for i := range remote.Run {
			if near[0] != all[len(all)-1].local+i {
				panic("a run that does not lie together in this process")
			}
			near = near[1:]
		}
	}
	if len(near) > 0 {
		panic("runs of two lengths")
	}
	return all
}

// cutRegular cuts a work for an engine that takes strided requests.
func cutRegular(w *core.Work, limit uint64, d *metadata.Descriptor, asked bool) (all []piece) {
	for c := newCursor(w); c.left > 0; {
		all = append(all, c.cutFor(destination{runs: mostStridedRun}, limit, d, asked))
	}
	return all
}

// bytesOf are the single bytes that runs move.
func bytesOf(runs []run) (all []run) {
	for _, r := range runs {
		for i := range r.length {
			all = append(all, run{r.op, r.local + i, r.remote + i, 1})
		}
	}
	return all
}

// randomRegular are tasks of some pools, in axes with random counts and strides, with a task here and there at any place.
func randomRegular(r *rand.Rand) (reqs []core.Request) {
	for bytes := uint64(0); bytes <= shortWork; {
		length := 1 + r.Uint64N(300)
		op := tcptest.Opcodes[r.IntN(2)]
		local, remote := 1<<30+r.Uint64N(1<<20), 1<<40+r.Uint64N(1<<20)
		places := [][2]uint64{{local, remote}}
		for range r.IntN(4) {
			strides := [2]uint64{length * r.Uint64N(5), length * r.Uint64N(5)}
			if r.IntN(3) == 0 {
				strides = [2]uint64{-(length * 7), length}
			}
			count, before := 1+r.IntN(9), places
			places = nil
			for i := range uint64(count) {
				for _, p := range before {
					places = append(places, [2]uint64{p[0] + i*strides[0], p[1] + i*strides[1]})
				}
			}
		}
		for _, p := range places {
			one := core.Request{Opcode: op, Local: uintptr(p[0]), Remote: p[1], Length: length}
			if r.IntN(60) == 0 {
				one.Length += r.Uint64N(3)
			}
			if r.IntN(60) == 0 {
				one.Remote += r.Uint64N(100)
			}
			if r.IntN(60) == 0 {
				one.Opcode = 1 - one.Opcode
			}
			if n := one.Length / 2; n > 0 && r.IntN(20) == 0 { // the run is in two tasks
				reqs = append(reqs, core.Request{Opcode: one.Opcode, Local: one.Local, Remote: one.Remote, Length: n})
				one.Local, one.Remote, one.Length = one.Local+uintptr(n), one.Remote+n, one.Length-n
			}
			reqs = append(reqs, one)
			bytes += length
		}
	}
	return reqs
}

func TestTasksAtRegularPlacesKeepEachByteAtItsPlaceAndInOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	patterns := 0
	for round := range 16 {
		reqs := randomRegular(random)
		w := workOf(reqs...)
		var want []run
		for _, r := range reqs {
			want = append(want, run{r.Opcode, uint64(r.Local), r.Remote, r.Length})
		}
		// No buffer holds an address in the middle, and the one behind it is closed to READs.
		d := buffers([2]uint64{1 << 39, 1<<39 + 1<<19}, [2]uint64{1<<40 + 1<<19 + 50, 1 << 39})
		asked := round%2 == 0
		limit := 1 + random.Uint64N(stridedBytes)
		var got, split []run
		for _, p := range cutRegular(w, limit, d, asked) {
			runs := runsOf(&p)
			got = append(got, runs...)
			require.LessOrEqual(t, p.length, limit)
			if p.strided == nil {
				p.split(func(part piece) { split = append(split, runsOf(&part)...) })
				continue
			}
			patterns++
			require.True(t, p.isRegular())
			require.GreaterOrEqual(t, len(runs), core.FewestRegularRuns)
			header := make([]byte, wire.HeaderSize+wire.MaxStridedBody)
			p.strided.put(header, &p)
			h, err := wire.ParseHeader(header[:wire.HeaderSize], true)
			require.NoError(t, err)
			_, low, span, err := h.ParseStrided(header[wire.HeaderSize:])
			require.NoError(t, err, "the peer takes it")
			addr, length := p.remoteRange()
			require.Equal(t, [2]uint64{addr, length}, [2]uint64{low, span})
			for _, r := range runs {
				_, ok := d.Contains(r.remote, r.length)
				require.True(t, ok || !asked, "a run that the descriptor does not show")
			}
			p.split(func(part piece) {
				require.Nil(t, part.strided)
				require.False(t, part.merged)
				require.Equal(t, w.Tasks[part.first].Remote, part.remote, "each task is tried by itself")
				require.Equal(t, w.Tasks[part.first].Length, part.length)
				split = append(split, runsOf(&part)...)
			})
		}
		require.True(t, slices.Equal(bytesOf(want), bytesOf(got)))
		require.True(t, slices.Equal(bytesOf(want), bytesOf(split)))
	}
	require.Greater(t, patterns, 20)
}

// poolOf are small pages of a pool with a gap behind each.
func poolOf(length uint64, numbers ...uint64) (reqs []core.Request) {
	for _, i := range numbers {
		reqs = append(reqs, write(uintptr(1<<30+2*length*i), 1<<40+3*length*i, length))
	}
	return reqs
}

func upTo(n uint64) (all []uint64) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

func TestPagesGoTogetherOnlyWhereThatPaysAndThePeerTakesIt(t *testing.T) {
	whole := buffers([2]uint64{1 << 40, 1 << 30})
	shuffled := upTo(1024)
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	takes := destination{runs: mostStridedRun}
	for name, c := range map[string]struct {
		reqs     []core.Request
		to       destination
		key      layout.Key
		patterns int
	}{
		"consecutive":                   {reqs: poolOf(256, upTo(512)...), to: takes, patterns: 1},
		"more than a request has":       {reqs: poolOf(256, upTo(1024)...), to: takes, patterns: 2},
		"no strided requests":           {reqs: poolOf(256, upTo(512)...), to: destination{}},
		"longer runs than go there":     {reqs: poolOf(256, upTo(512)...), to: destination{runs: 255}},
		"pages that are too long":       {reqs: poolOf(core.MostRegularRun+1, upTo(512)...), to: takes},
		"a short batch":                 {reqs: poolOf(64, upTo(1024)...), to: takes},
		"pages in no order":             {reqs: poolOf(256, shuffled...), to: takes},
		"of an offer, one by one":       {reqs: poolOf(256, upTo(512)...), to: takes, key: layout.Key{1}},
		"the last ones are too few":     {reqs: append(poolOf(256, upTo(512)...), poolOf(256, 1000, 1001, 1002)...), to: takes, patterns: 1},
		"a longer page between the two": {reqs: slices.Concat(poolOf(256, upTo(256)...), poolOf(300, 400), poolOf(256, upTo(256)...)), to: takes, patterns: 2},
	} {
		t.Run(name, func(t *testing.T) {
			w, patterns := workOf(c.reqs...), 0
			w.Key = c.key
			for cut := newCursor(w); cut.left > 0; {
				if p := cut.cutFor(c.to, stridedBytes, whole, false); p.isRegular() {
					patterns++
				}
			}
			require.Equal(t, c.patterns, patterns)
		})
	}
}

func TestRunsInMemoryOfTwoKindsDoNotShareARequestWhereTheDescriptorIsAsked(t *testing.T) {
	d := &metadata.Descriptor{Buffers: []metadata.Buffer{
		{Name: "cpu:0", Addr: 1 << 40, Length: 256 * 3 * 256}, {Name: "npu:0", Addr: 1<<40 + 256*3*256, Length: 1 << 20}}}
	d.BuildIndex()
	pieces := cutRegular(workOf(poolOf(256, upTo(512)...)...), stridedBytes, d, true)
	require.Len(t, pieces, 2)
	for _, p := range pieces {
		require.EqualValues(t, 256*256, p.length)
	}
}

func TestARegularPieceIsSplitIntoItsTasks(t *testing.T) {
	w := workOf(poolOf(256, upTo(512)...)...)
	p := cutRegular(w, stridedBytes, buffers([2]uint64{1 << 40, 1 << 30}), false)[0]
	require.True(t, p.isRegular())
	var all []piece
	p.split(func(part piece) { all = append(all, part) })
	require.Len(t, all, 512)
}

func TestARegularWriteThatWaitsForTooLongIsJudgedTaskByTask(t *testing.T) {
	e := newEngine(t)
	p := &peer{environment: environment{config: &core.Config{}, fence: &transportOf(t, e).fence}}
	regular := cutRegular(workOf(poolOf(256, upTo(512)...)...), stridedBytes, buffers([2]uint64{1 << 40, 1 << 30}), false)[0]
	former := piece{op: core.Write, work: workOf(write(0x1000, 0x10000, 1)), remote: regular.remote + 3*256*100, length: 300}
	end := &connectionEnd{target: "target"}
	p.fence.quarantines.add([]piece{former}, end)
	defer p.fence.quarantines.release(end)

	regular.blocked = 1
	require.False(t, p.mayGo("target", &regular))
	require.Empty(t, p.blocked)
	require.Len(t, p.returned, 512)
	for i := range p.returned {
		waits, _ := p.fence.quarantines.check("target", &p.returned[i])
		require.Equal(t, i == 100, waits != nil, "task %d", i)
		require.EqualValues(t, 1, p.returned[i].blocked, "the time that it has waited counts")
	}
}
