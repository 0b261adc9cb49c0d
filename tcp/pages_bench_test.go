package tcp

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pagesOf are pages of so many bytes, of 64 rows. Rows are at a constant distance, or at random ones. Page numbers come in groups
// of consecutive ones, the groups in another order on each side. Pages have gaps of their own length between them.
func pagesOf(op core.Opcode, id core.SegmentID, near, far []byte, length, group int, regularRows bool) *core.Pages {
	const rows = 64
	pages := len(near) / 2 / rows / length
	r := rand.New(rand.NewPCG(1, 2))
	p := &core.Pages{Opcode: op, Target: id}
	first, second := r.Perm(pages/group), r.Perm(pages/group)
	for i := range first {
		for j := range group {
			p.Local = append(p.Local, uint64(first[i]*group+j))
			p.Remote = append(p.Remote, uint64(second[i]*group+j))
		}
	}
	order := r.Perm(rows)
	for i := range rows {
		at := i
		if !regularRows {
			at = order[i]
		}
		p.Rows = append(p.Rows, core.PageRow{
			LocalBase: uint64(hostmem.AddressOf(near)) + uint64(i*pages*2*length), LocalStride: uint64(2 * length),
			RemoteBase: uint64(hostmem.AddressOf(far)) + uint64(at*pages*2*length), RemoteStride: uint64(2 * length), Length: uint64(length),
		})
	}
	return p
}

// BenchmarkPages moves 8 MiB in small pages by one call. Consecutive pages, and the same page of layers at a constant distance, go
// together. Irregular pages are requests of their own. The processor time is that of both engines.
func BenchmarkPages(b *testing.B) {
	const bytes = 8 << 20
	for _, length := range []int{64, 256, 512, 1024} {
		for _, c := range []struct {
			name    string
			group   int
			regular bool
		}{{"consecutive", 64, false}, {"layers", 1, true}, {"irregular", 1, false}} {
			for _, op := range tcptest.Opcodes {
				b.Run(fmt.Sprintf("page=%d/%v/%s", length, op, c.name), func(b *testing.B) {
					target, e := newEngine(b), newEngine(b)
					near, far := tcptest.Mapped(b, 2*bytes), tcptest.Mapped(b, 2*bytes)
					tcptest.Fill(near, 1)
					tcptest.Fill(far, 2)
					require.NoError(b, e.Register(hostmem.AddressOf(near), uint64(len(near)), "cpu:0", true))
					require.NoError(b, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
					pages := pagesOf(op, tcptest.OpenSegment(b, e, target.Name()), near, far, length, c.group, c.regular)
					move := func() {
						batch, err := e.SubmitPages(pages, 0)
						require.NoError(b, err)
						tcptest.Wait(b, batch)
						require.NoError(b, batch.Err())
						require.NoError(b, e.FreeBatch(batch))
					}
					move()
					b.SetBytes(int64(pages.Count() * length))
					began := processorTime(b)
					for b.Loop() {
						move()
					}
					b.ReportMetric(float64(processorTime(b)-began)/float64(b.N)/float64(time.Millisecond), "cpu-ms/op")
				})
			}
		}
	}
}

// processorTime is how much this process has used.
func processorTime(b *testing.B) time.Duration {
	var usage unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
