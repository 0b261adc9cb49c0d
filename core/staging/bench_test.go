package staging_test

import (
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/staging"

	"github.com/stretchr/testify/require"
)

// The benchmarks move one block full of moves at a time, on a device of the host runtime: they show what staging itself
// costs, and what it allocates for a job.

func BenchmarkOut4K(b *testing.B) { benchmark(b, staging.Out, 4*kib) }
func BenchmarkIn4K(b *testing.B)  { benchmark(b, staging.In, 4*kib) }
func BenchmarkOut2M(b *testing.B) { benchmark(b, staging.Out, 2*mib) }
func BenchmarkIn2M(b *testing.B)  { benchmark(b, staging.In, 2*mib) }

func benchmark(b *testing.B, dir staging.Direction, length uint64) {
	const blockSize = 2 * mib
	host := device.NewHost("host", 1)
	on, err := host.Open(0)
	require.NoError(b, err)
	d := staging.New(on, "host:0", staging.Options{
		BlockSize: blockSize, PoolSize: 16 * mib, GatherBelow: 512 * kib, Timeout: time.Minute,
	})
	defer d.Close()
	memory, err := host.Allocate(0, 2*blockSize)
	require.NoError(b, err)
	defer host.Free(memory)
	account, done := d.Account(dir, staging.Initiator, nil), make(chan error, 1)
	job := &staging.Job{Done: func(err error) { done <- err }}
	b.SetBytes(blockSize)
	b.ReportAllocs()
	for b.Loop() {
		lease, err := account.Lease(b.Context(), blockSize)
		if err != nil {
			b.Fatal(err)
		}
		job.Moves = job.Moves[:0]
		for at := uint64(0); at < lease.Length; at += length {
			job.Moves = append(job.Moves, staging.Move{Device: addressOf(memory) + uintptr(2*at), Block: lease.Addr + uintptr(at), Length: length})
		}
		d.Start(dir, job)
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		lease.Release()
	}
}
