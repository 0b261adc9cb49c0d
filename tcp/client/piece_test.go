package client

import (
	"math/rand/v2"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// workOf links the requests as an engine does.
func workOf(reqs ...core.Request) *core.Work {
	w := &core.Work{Tasks: make([]core.Task, len(reqs))}
	for i := range reqs {
		w.Tasks[i].Request, w.Tasks[i].Next = reqs[i], int32(i+1)
		w.Bytes += reqs[i].Length
	}
	w.Tasks[len(reqs)-1].Next = -1
	return w
}

func buffers(ranges ...[2]uint64) *metadata.Descriptor {
	d := &metadata.Descriptor{}
	for _, r := range ranges {
		d.Buffers = append(d.Buffers, metadata.Buffer{Name: "cpu:0", Addr: r[0], Length: r[1]})
	}
	d.BuildIndex()
	return d
}

func write(local uintptr, remote, length uint64) core.Request {
	return core.Request{Opcode: core.Write, Local: local, Remote: remote, Length: length}
}

// cutAll returns the ranges of the pieces that a work is cut into.
func cutAll(w *core.Work, limit uint64, d *metadata.Descriptor) (all []piece) {
	for c := newCursor(w); c.left > 0; {
		all = append(all, c.cut(limit, d))
	}
	return all
}

func TestPiecesOfRandomTasksCoverEachByteOnceAndKeepItsPlace(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	type place struct {
		op     core.Opcode
		local  uintptr
		remote uint64
	}
	for range 300 {
		var reqs []core.Request
		var want []place
		local, remote := uintptr(1000), uint64(2000)
		for range 1 + random.IntN(20) {
			r := core.Request{Opcode: tcptest.Opcodes[random.IntN(2)], Local: local, Remote: remote, Length: 1 + random.Uint64N(50)}
			reqs = append(reqs, r)
			for i := range r.Length {
				want = append(want, place{r.Opcode, r.Local + uintptr(i), r.Remote + i})
			}
			local, remote = local+uintptr(r.Length), remote+r.Length
			if random.IntN(3) == 0 {
				local += 1
			}
			if random.IntN(3) == 0 {
				remote += 1
			}
		}
		d := buffers([2]uint64{2000, 1 + random.Uint64N(800)}, [2]uint64{2800, 200})
		limit := 1 + random.Uint64N(120)
		var got, split []place
		for _, p := range cutAll(workOf(reqs...), limit, d) {
			require.NotZero(t, p.length)
			require.LessOrEqual(t, p.length, limit)
			for i := range p.length {
				got = append(got, place{p.op, p.local + uintptr(i), p.remote + i})
			}
			if _, ok := d.Contains(p.remote, p.length); !ok {
				require.False(t, p.merged, "beyond one buffer: %+v", p)
			}
			p.split(func(part piece) {
				require.False(t, part.merged)
				task := reqs[part.first]
				require.LessOrEqual(t, part.skip+part.length, task.Length)
				require.Equal(t, task.Remote+part.skip, part.remote)
				for i := range part.length {
					split = append(split, place{part.op, part.local + uintptr(i), part.remote + i})
				}
			})
		}
		require.Equal(t, want, got)
		require.Equal(t, want, split)
	}
}

func TestTasksAreMergedOnlyWhereNothingLiesBetween(t *testing.T) {
	whole := buffers([2]uint64{0x10000, 0x10000})
	second := write(0x1000+64, 0x10000+64, 64)
	for name, c := range map[string]struct {
		second core.Request
		d      *metadata.Descriptor
		limit  uint64
		pieces int
	}{
		"adjacent on both sides":          {second, whole, 128, 1},
		"over the limit":                  {second, whole, 127, 2},
		"a gap in local memory":           {write(0x1000+65, 0x10000+64, 64), whole, 1024, 2},
		"a gap in remote memory":          {write(0x1000+64, 0x10000+65, 64), whole, 1024, 2},
		"the other way round":             {write(0x1000-64, 0x10000-64, 64), whole, 1024, 2},
		"another direction":               {core.Request{Opcode: core.Read, Local: 0x1000 + 64, Remote: 0x10000 + 64, Length: 64}, whole, 1024, 2},
		"two buffers side by side":        {second, buffers([2]uint64{0x10000, 64}, [2]uint64{0x10040, 64}), 1024, 2},
		"a buffer that ends one byte off": {second, buffers([2]uint64{0x10000, 127}), 1024, 2},
		"a buffer that is just right":     {second, buffers([2]uint64{0x10000, 128}), 1024, 1},
		"no buffer that is known":         {second, buffers(), 1024, 2},
	} {
		t.Run(name, func(t *testing.T) {
			require.Len(t, cutAll(workOf(write(0x1000, 0x10000, 64), c.second), c.limit, c.d), c.pieces)
		})
	}
}

func TestBlocksAtTheEndOfTheAddressSpaceAreMergedThereAndNotBeyond(t *testing.T) {
	const last = ^uint64(0) - 127
	d := buffers([2]uint64{last, 128})
	require.Len(t, cutAll(workOf(write(0x1000, last, 64), write(0x1040, last+64, 64)), 1024, d), 1)
	require.Len(t, cutAll(workOf(write(0x1000, last+64, 64), write(0x1040, 0, 64)), 1024, d), 2)
}

func TestTheTailOfALargeTaskIsMergedWithTheNext(t *testing.T) {
	d := buffers([2]uint64{0x10000, 0x10000})
	pieces := cutAll(workOf(write(0x1000, 0x10000, 150), write(0x1000+150, 0x10000+150, 20)), 100, d)
	require.Len(t, pieces, 2)
	require.EqualValues(t, 70, pieces[1].length)
	require.EqualValues(t, 100, pieces[1].skip)
	var parts []piece
	pieces[1].split(func(p piece) { parts = append(parts, p) })
	require.Len(t, parts, 2)
	require.Equal(t, [3]uint64{0, 100, 50}, [3]uint64{uint64(parts[0].first), parts[0].skip, parts[0].length})
	require.Equal(t, [3]uint64{1, 0, 20}, [3]uint64{uint64(parts[1].first), parts[1].skip, parts[1].length})
}
