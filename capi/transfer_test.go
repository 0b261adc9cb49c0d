package main

import (
	"fmt"
	"math"
	"testing"
	"unsafe"

	"kvferry/core"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// call is what C passes to the Go half of kvferry_transfer_sync, made once, so that the calls allocate only what they do
// from C. Its transfers are between two places of the process, and have ended when they are submitted.
type call struct {
	engine unsafe.Pointer
	memory []byte // outside the Go heap
	arrays core.Arrays
	batch  uint64
	word   uint32
	handle unsafe.Pointer
	reason [1024]byte
}

// startCall makes a call of so many WRITEs of one byte each, and an engine for it.
func startCall(t testing.TB, requests int) *call {
	t.Helper()
	memory, err := unix.Mmap(-1, 0, 2*requests, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(memory)) })
	engine, err := create(environment{}, core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE"}, false, false)
	require.NoError(t, err)
	h, e, err := liveHandleOf(engine)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.end(engine)) })
	clear(memory) // what has never been touched would not be copied at once
	base := uintptr(unsafe.Pointer(&memory[0]))
	require.NoError(t, e.Register(base, uint64(len(memory)), "cpu:0", true))
	c := &call{engine: engine, memory: memory}
	for i := range uint64(requests) {
		c.arrays.Local = append(c.arrays.Local, uint64(base)+i)
		c.arrays.Remote = append(c.arrays.Remote, uint64(base)+uint64(requests)+i)
		c.arrays.Lengths = append(c.arrays.Lengths, 1)
	}
	return c
}

// perform calls f, which is kvferry_go_submit_and_watch: a test file may not use cgo, so the types of C are inferred.
func perform[Int, ID ~int32, Numbers ~*Number, Number ~uint64, Count ~uint64, Message any, Batch ~uint64, Word ~uint32, Char any](
	t testing.TB, c *call, f func(unsafe.Pointer, Int, ID, Numbers, Numbers, Numbers, Count, Message, *Batch, *Word, *unsafe.Pointer, *Char) Int,
) {
	var none Message
	result := f(c.engine, Int(core.Write), ID(core.LocalSegment),
		Numbers(unsafe.Pointer(&c.arrays.Local[0])), Numbers(unsafe.Pointer(&c.arrays.Remote[0])),
		Numbers(unsafe.Pointer(&c.arrays.Lengths[0])), Count(len(c.arrays.Local)), none,
		(*Batch)(unsafe.Pointer(&c.batch)), (*Word)(unsafe.Pointer(&c.word)), &c.handle, (*Char)(unsafe.Pointer(&c.reason)))
	if result != 0 {
		t.Fatalf("%d: %s", result, c.reason)
	}
}

func BenchmarkSubmitAndWatch(b *testing.B) {
	for _, requests := range []int{1, 64, 4096} {
		b.Run(fmt.Sprintf("requests=%d", requests), func(b *testing.B) {
			c := startCall(b, requests)
			b.ReportAllocs()
			for b.Loop() {
				perform(b, c, kvferry_go_submit_and_watch)
			}
		})
	}
}

func TestACallAllocatesNothingPerRequest(t *testing.T) {
	allocations := func(requests int) (fewest float64) {
		c := startCall(t, requests)
		fewest = math.Inf(1)
		for range 5 { // the garbage collector and other goroutines add to a run now and then
			fewest = min(fewest, testing.AllocsPerRun(4, func() { perform(t, c, kvferry_go_submit_and_watch) }))
		}
		return fewest
	}
	require.InDelta(t, allocations(64), allocations(4096), 1, "with 64 requests, and with 4096; each is rounded")
}
