package client

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"kvferry/core"
)

// BenchmarkCutRegular cuts a work of 4096 tasks of 256 bytes into pieces, for an engine that takes strided requests and for one
// that does not. Tasks have gaps between them, and come in groups of consecutive ones.
func BenchmarkCutRegular(b *testing.B) {
	const tasks, length = 4096, 256
	for _, group := range []int{1, 2, 8, 64} {
		r := rand.New(rand.NewPCG(1, 2))
		local, remote := r.Perm(tasks/group), r.Perm(tasks/group)
		reqs := make([]core.Request, tasks)
		for i := range reqs {
			l, f := local[i/group]*group+i%group, remote[i/group]*group+i%group
			reqs[i] = core.Request{Opcode: core.Write, Local: uintptr(1<<40 + 2*l*length), Remote: uint64(1<<41 + 2*f*length), Length: length}
		}
		w, d := workOf(reqs...), buffers([2]uint64{1 << 41, 1 << 30})
		for _, c := range []struct {
			name  string
			runs  uint64
			asked bool
		}{{"plain", 0, false}, {"strided", mostStridedRun, false}, {"strided, asked", mostStridedRun, true}} {
			b.Run(fmt.Sprintf("group=%d/%s", group, c.name), func(b *testing.B) {
				b.ReportAllocs()
				pieces := 0
				for b.Loop() {
					pieces = 0
					for cut := newCursor(w); cut.left > 0; pieces++ {
						cut.cutFor(destination{runs: c.runs}, 64<<10, d, c.asked)
					}
				}
				b.ReportMetric(float64(pieces), "pieces")
			})
		}
	}
}
