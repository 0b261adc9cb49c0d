// Package bench measures parts of the engine by themselves. What crosses processes is measured by the programs beside it.
package bench

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/staging"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// cost is what simulated copies cost: the simulator's defaults.
const cost = "d2h=25/15,h2d=25/15,d2d=1000/2,pageable=3/15,batch=1"

// ways are those of copying small blocks.
var ways = []struct {
	name string
	set  func(o *staging.Options)
}{
	{"gathered", func(o *staging.Options) { o.GatherBelow = 1 << 20 }},
	{"one by one", func(o *staging.Options) { o.GatherBelow = 0 }},
}

// profiles are the costs of simulated devices, by the simulator's names.
var profiles = []string{"npu-910b-guess", "npu-slow-within", "gpu-h200"}

// choices are the settings of KVFERRY_DEVICE_COPY that are compared.
var choices = map[string]staging.Copying{
	"single": staging.AlwaysBy(device.Single), "batch": staging.AlwaysBy(device.Batch), "gather": staging.AlwaysBy(device.Gather),
	"auto": staging.Measured,
}

// shapes are lengths of blocks, and how many of them a transfer has.
var shapes = [][2]uint64{{4 << 10, 64}, {4 << 10, 256}, {16 << 10, 256}, {64 << 10, 64}, {64 << 10, 256}, {1 << 20, 32}}

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
					newJobs(b, directions[direction], size, way.set).run(b)
				})
			}
		}
	}
}

// BenchmarkChoices compares what was measured on a simulated device with each fixed way. An iteration is a transfer. Besides the
// rate it reports that of the device alone, by the simulator's costs, on which the machine and its load have no influence.
func BenchmarkChoices(b *testing.B) {
	for _, profile := range profiles {
		for _, direction := range []string{"out", "in"} {
			for _, shape := range shapes {
				for _, choice := range slices.Sorted(maps.Keys(choices)) {
					b.Run(fmt.Sprintf("%s/%s/%d x %d/%s", profile, direction, shape[0], shape[1], choice), func(b *testing.B) {
						simtest.Cost(b, profile)
						j := newJobs(b, directions[direction], shape[0], func(o *staging.Options) {
							o.GatherBelow, o.Copying, o.MeasureTime = 256<<10, choices[choice], time.Hour
						})
						j.count = int(shape[1])
						j.measure(b)
						j.run(b)
					})
				}
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
	count     int // blocks of an iteration, in as many jobs as it takes; 0: one full job
	failure   chan error
	room      chan struct{} // one token for each job in flight
}

func newJobs(b *testing.B, direction staging.Direction, size uint64, set func(o *staging.Options)) *jobs {
	options := staging.Options{
		BlockSize: 2 << 20,
		PoolSize:  64 << 20,
		Timeout:   time.Minute,
		Log:       zap.NewNop(),
	}
	set(&options)
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
		memory:    application.Alloc(int(2*options.BlockSize) + 2048),
		size:      size,
		failure:   make(chan error, 2*jobsInFlight),
		room:      make(chan struct{}, jobsInFlight),
	}
}

// measure has the device measured anew, if that is what is to choose.
func (j *jobs) measure(b *testing.B) {
	opened, err := simtest.Runtime(b).Open(0)
	require.NoError(b, err)
	opened.(device.Timer).Tables().Forget()
	if who, _, _ := j.staging.Copying(); who != staging.Measured {
		return
	}
	j.start(b, 2)
	j.wait(b)
	require.Eventually(b, func() bool { return j.staging.Table(j.direction) != nil }, time.Minute, time.Millisecond)
}

func (j *jobs) run(b *testing.B) {
	j.iterate(b) // makes threads, streams and blocks
	j.wait(b)
	bytes, worked := 0, simtest.TakeReport(b).WorkedNs
	b.ResetTimer()
	for range b.N {
		bytes = j.iterate(b)
	}
	j.wait(b)
	b.SetBytes(int64(bytes))
	b.ReportMetric(float64(bytes)*float64(b.N)/float64(simtest.TakeReport(b).WorkedNs-worked), "device-GB/s")
}

// iterate starts the jobs of an iteration, and returns the bytes that they move.
func (j *jobs) iterate(b *testing.B) int {
	if j.count == 0 {
		return j.start(b, math.MaxInt)
	}
	bytes := 0
	for bytes < j.count*int(j.size) {
		bytes += j.start(b, j.count-bytes/int(j.size))
	}
	return bytes
}

// start starts a job of at most so many blocks, once there is room for it, and returns the bytes that it moves.
func (j *jobs) start(b *testing.B, most int) int {
	j.room <- struct{}{}
	lease, err := j.account.Lease(context.Background(), j.staging.BlockSize())
	require.NoError(b, err)
	moves := j.moves(lease, most)
	j.staging.Start(j.direction, &staging.Job{Moves: moves, Done: func(err error) {
		lease.Release()
		j.failure <- err
		<-j.room
	}})
	j.check(b, len(j.failure))
	return len(moves) * int(j.size)
}

// moves fills a lease with blocks, with gaps of two lengths between them on the device.
func (j *jobs) moves(lease *staging.Lease, most int) []staging.Move {
	var moves []staging.Move
	for end := uint64(0); ; {
		addr := j.memory + uintptr(2*j.size*uint64(len(moves))) + uintptr(len(moves)%3*512)
		at := j.staging.Place(end, addr, j.size)
		end = at + j.size
		if end > lease.Length || len(moves) == most {
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
