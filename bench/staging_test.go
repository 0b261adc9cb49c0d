// Package bench measures parts of the engine by themselves. What crosses processes is measured by the programs beside it.
package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"kvferry/core/staging"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"
)

// cost is what simulated copies cost: the simulator's defaults.
const cost = "d2h=25/15,h2d=25/15,d2d=1000/2,pageable=3/15,batch=1"

// ways are those of copying small blocks, by what is below GatherBelow.
var ways = []struct {
	name        string
	gatherBelow uint64
}{
	{"gathered", 1 << 20},
	{"one by one", 0},
}

var directions = map[string]staging.Direction{"out": staging.Out, "in": staging.In}

// jobsInFlight are as many as keep both threads of a direction busy.
const jobsInFlight = 4

// BenchmarkStaging moves scattered blocks between the memory of a simulated device and staging blocks, without a network.
// An iteration is one job, of a full staging block.
func BenchmarkStaging(b *testing.B) {
	for _, direction := range []string{"out", "in"} {
		for _, size := range []uint64{4 << 10, 16 << 10, 64 << 10, 256 << 10} {
			for _, way := range ways {
				b.Run(fmt.Sprintf("%s/%d/%s", direction, size, way.name), func(b *testing.B) {
					simtest.Cost(b, cost)
					newJobs(b, directions[direction], size, way.gatherBelow).run(b)
				})
			}
		}
	}
}

// jobs makes jobs of blocks of one size, each with as much free memory behind it as it is long.
type jobs struct {
	staging   *staging.Device
	direction staging.Direction
	account   *staging.Account
	memory    uintptr // of the device: room for the blocks of one job, and the gaps
	size      uint64
	failure   chan error
	room      chan struct{} // one token for each job in flight
}

func newJobs(b *testing.B, direction staging.Direction, size, gatherBelow uint64) *jobs {
	options := staging.Options{
		BlockSize:   2 << 20,
		PoolSize:    64 << 20,
		GatherBelow: gatherBelow,
		Timeout:     time.Minute,
		Log:         zaptest.NewLogger(b),
	}
	application := simtest.NewDevice(b, 0)
	opened, err := simtest.Runtime(b).Open(0)
	require.NoError(b, err)
	d := staging.New(opened, "npu:0", options)
	b.Cleanup(func() { require.NoError(b, d.Close()) })
	account := d.Account(direction, staging.Initiator, nil)
	b.Cleanup(account.Close)
	return &jobs{
		staging:   d,
		direction: direction,
		account:   account,
		memory:    application.Alloc(int(2 * options.BlockSize)),
		size:      size,
		failure:   make(chan error, 2*jobsInFlight),
		room:      make(chan struct{}, jobsInFlight),
	}
}

func (j *jobs) run(b *testing.B) {
	j.start(b) // makes threads, streams and blocks
	j.wait(b)
	bytes := 0
	b.ResetTimer()
	for range b.N {
		bytes = j.start(b)
	}
	j.wait(b)
	b.SetBytes(int64(bytes))
}

// start starts a job, once there is room for it; the bytes that it moves.
func (j *jobs) start(b *testing.B) int {
	j.room <- struct{}{}
	lease, err := j.account.Lease(context.Background(), j.staging.BlockSize())
	require.NoError(b, err)
	moves := j.moves(lease)
	j.staging.Start(j.direction, &staging.Job{Moves: moves, Done: func(err error) {
		lease.Release()
		j.failure <- err
		<-j.room
	}})
	j.check(b, len(j.failure))
	return len(moves) * int(j.size)
}

// moves fills a lease.
func (j *jobs) moves(lease *staging.Lease) []staging.Move {
	var moves []staging.Move
	for end := uint64(0); ; {
		addr := j.memory + uintptr(2*j.size*uint64(len(moves)))
		at := j.staging.Place(end, addr, j.size)
		end = at + j.size
		if end > lease.Length {
			return moves
		}
		moves = append(moves, staging.Move{Device: addr, Block: lease.Addr + uintptr(at), Length: j.size})
	}
}

// wait waits until no job is in flight.
func (j *jobs) wait(b *testing.B) {
	for range jobsInFlight {
		j.room <- struct{}{}
	}
	for range jobsInFlight {
		<-j.room
	}
	j.check(b, len(j.failure))
}

func (j *jobs) check(b *testing.B, ended int) {
	for range ended {
		require.NoError(b, <-j.failure)
	}
}
