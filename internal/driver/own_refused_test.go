package driver_test

import (
	"math/rand/v2"
	"testing"

	"kvferry/core"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
)

// ranges are where a task reads and writes: offsets in memory of the device that it is on, or in memory that is gone.
type ranges struct {
	request  core.Request
	to, from int // of what is good
	bad      bool
}

// ownTasks are random tasks between two places, some of them with memory that is gone at one end. Many overlap where both are one.
func ownTasks(r *rand.Rand, op core.Opcode, local, remote *memory, gone [2]uintptr) []ranges {
	tasks := make([]ranges, 1+r.IntN(60))
	for i := range tasks {
		length := []int{64, 256, 300, 4 * kib, 40 * kib}[r.IntN(5)]
		at := func() int { return r.IntN(64*kib/64)*64 + r.IntN(16)/15*8 }
		l, m := at(), at()
		q := core.Request{Opcode: op, Local: local.addr + uintptr(l), Remote: uint64(remote.addr) + uint64(m), Length: uint64(length)}
		t := ranges{to: m, from: l}
		if op == core.Read {
			t.to, t.from = l, m
		}
		switch r.IntN(12) {
		case 0:
			q.Local, t.bad = gone[0], true
		case 1:
			q.Remote, t.bad = uint64(gone[1]), true
		}
		t.request = q
		tasks[i] = t
	}
	return tasks
}

// Memory that was freed is refused. Tasks with other memory, which are in the same job, have moved their bytes, in their order, and the
// devices go on to copy from each other.
func TestOwnSegmentCopiesFailForThoseTasksAloneWhoseMemoryIsGone(t *testing.T) {
	const length = 128 * kib
	onPlaces(t, func(t *testing.T, k *kind, p places, apps [2]*accelerator) {
		n := newNode(t, small, simtest.Runtime(t))
		local, remote := n.on(apps[0], length), n.on(apps[1], length)
		if p.other == 1 {
			remote = local
		}
		var gone [2]uintptr
		for i, app := range apps {
			m := n.on(app, 64*kib)
			app.Free(m.addr)
			gone[i] = m.addr
		}
		for seed := range uint64(20) {
			simtest.Seed(t, seed)
			r := rand.New(rand.NewPCG(seed, 7))
			for op := range ways {
				tasks := ownTasks(r, op, local, remote, gone)
				to, from := ways[op](local, remote)
				from.write(noise(length))
				want := to.read()
				source := from.read()
				if to == from {
					source = want
				}
				var reqs []core.Request
				for _, task := range tasks {
					reqs = append(reqs, task.request)
					if size := int(task.request.Length); !task.bad {
						copy(want[task.to:task.to+size], append([]byte(nil), source[task.from:task.from+size]...))
					}
				}
				b := n.submit(reqs...)
				n.wait(b)
				for i, state := range n.states(b) {
					require.Equal(t, tasks[i].bad, state == core.Failed, "task %d of %d, %v: %v", i, len(tasks), op, b.Err())
				}
				require.NoError(t, n.FreeBatch(b))
				requireBytes(t, want, to)
			}
		}
		direct, _ := n.own(core.Write, local, n.on(apps[1], length), span{0, 4096})
		require.Equal(t, !p.apart, direct > 0, "%d bytes were copied from device to device", direct)
		simtest.ResetCounters(t) // the use of memory that was freed is intended
	})
}
