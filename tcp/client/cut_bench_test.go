package client

import (
	"fmt"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"
)

// BenchmarkCut cuts a work of 4096 tasks of 4 KiB into pieces of at most 64 KiB.
func BenchmarkCut(b *testing.B) {
	const tasks, length, limit = 4096, 4096, 64 << 10
	for _, c := range []struct {
		name string
		gap  uint64 // between tasks, in bytes
	}{{"scattered", length}, {"adjacent", 0}} {
		reqs := make([]core.Request, tasks)
		for i := range reqs {
			at := uint64(i) * (length + c.gap)
			reqs[i] = core.Request{Opcode: core.Write, Local: uintptr(1<<40 + at), Remote: 1<<41 + at, Length: length}
		}
		w := workOf(reqs...)
		for _, buffers := range []int{1, 160} {
			d := &metadata.Descriptor{}
			for i := range buffers {
				d.Buffers = append(d.Buffers, metadata.Buffer{Addr: 1<<41 - uint64(i)<<32, Length: 1 << 30})
			}
			d.BuildIndex()
			b.Run(fmt.Sprintf("%s/buffers=%d", c.name, buffers), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					for c := newCursor(w); c.left > 0; {
						c.cut(limit, d)
					}
				}
			})
		}
	}
}
