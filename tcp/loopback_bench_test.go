package tcp

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
)

// loopback is two engines of this process, and requests from one to the other.
type loopback struct {
	*core.Engine
	requests []core.Request
	ended    chan struct{} // one token for each batch that has ended
}

func startLoopback(t testing.TB, op core.Opcode, requests, length int, change ...func(*core.Config)) *loopback {
	t.Helper()
	target, initiator := newEngine(t, change...), newEngine(t, change...)
	far, near := tcptest.Mapped(t, requests*(length+1)), tcptest.Mapped(t, requests*(length+1))
	require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
	require.NoError(t, initiator.Register(hostmem.AddressOf(near), uint64(len(near)), "cpu:0", true))
	id := tcptest.OpenSegment(t, initiator, target.Name())
	return &loopback{initiator, tcptest.Scattered(op, near, id, far, requests, length), make(chan struct{}, 1)}
}

// transfer moves the requests in one batch, and waits for it.
func (l *loopback) transfer(t testing.TB) {
	batch, err := l.AllocateBatch(len(l.requests))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Submit(batch, l.requests, nil); err != nil {
		t.Fatal(err)
	}
	l.Assist(batch, l.requests[0].Target)
	batch.OnDone(func() { l.ended <- struct{}{} })
	<-l.ended
	if err := batch.Err(); err != nil {
		t.Fatal(err)
	}
	if err := l.FreeBatch(batch); err != nil {
		t.Fatal(err)
	}
}

// paths are the two between engines of one host.
var paths = []struct {
	name   string
	config func(*core.Config)
}{
	{"tcp", func(*core.Config) {}},
	{"memory", tcptest.OnOneHost},
}

// BenchmarkLoopback moves batches of 4 KiB blocks from one engine of the process to the other, one batch at a time.
func BenchmarkLoopback(b *testing.B) {
	const length = 4096
	for _, path := range paths {
		for _, op := range []core.Opcode{core.Write, core.Read} {
			for _, requests := range []int{1, 64} {
				b.Run(fmt.Sprintf("%s/%v/requests=%d", path.name, op, requests), func(b *testing.B) {
					l := startLoopback(b, op, requests, length, path.config)
					l.transfer(b) // connects
					b.SetBytes(int64(requests * length))
					b.ReportAllocs()
					for b.Loop() {
						l.transfer(b)
					}
				})
			}
		}
	}
}

// BenchmarkTraces moves batches of 4 KiB blocks with traces and without, in turns, since other work on the machine comes and goes.
// traced/op is the time with traces, as a part of that without: of turns that three quarters of the others take longer than.
func BenchmarkTraces(b *testing.B) {
	const length, turn = 4096, 32 // batches
	for _, path := range paths {
		for _, op := range []core.Opcode{core.Write, core.Read} {
			for _, requests := range []int{1, 64} {
				b.Run(fmt.Sprintf("%s/%v/requests=%d", path.name, op, requests), func(b *testing.B) {
					traced := func(c *core.Config) {
						c.TraceFile, c.TraceBatches = filepath.Join(b.TempDir(), "trace.json"), 256
					}
					without := startLoopback(b, op, requests, length, path.config)
					with := startLoopback(b, op, requests, length, path.config, traced)
					var took, base []float64 // of each turn
					for b.Loop() {
						base, took = append(base, seconds(b, without, turn)), append(took, seconds(b, with, turn))
					}
					slices.Sort(base)
					slices.Sort(took)
					b.ReportMetric(took[len(took)/4]/base[len(base)/4], "traced/op")
				})
			}
		}
	}
}

// seconds is how long so many transfers take.
func seconds(b *testing.B, l *loopback, transfers int) float64 {
	began := time.Now()
	for range transfers {
		l.transfer(b)
	}
	return time.Since(began).Seconds()
}

// Both sides are counted: the initiator's work and the target's.
func TestATransferAllocatesNothingPerRequest(t *testing.T) {
	const length = 64      // of a block: all of them are worth one lane
	const forAWait = 8.    // allocations, where a batch has not ended when it is waited for
	const forAPattern = 4. // and for a strided request, which has 1024 of the blocks
	const few, many = 64, 4096
	for _, path := range paths {
		for _, op := range []core.Opcode{core.Write, core.Read} {
			t.Run(path.name+" "+op.String(), func(t *testing.T) {
				short := startLoopback(t, op, few, length, path.config)
				long := startLoopback(t, op, many, length, path.config)
				require.InDelta(t, allocations(t, short), allocations(t, long), forAWait+forAPattern*many/1024)
			})
		}
	}
}

func allocations(t *testing.T, l *loopback) (fewest float64) {
	const warm = 5
	for range warm { // connects, and grows the buffers that are kept
		l.transfer(t)
	}
	fewest = math.Inf(1)
	for range 5 { // the garbage collector and other goroutines add to a run now and then
		fewest = min(fewest, testing.AllocsPerRun(4, func() { l.transfer(t) }))
	}
	return fewest
}
