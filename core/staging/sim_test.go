package staging_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvferry/core/staging"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// These tests run on simulated devices: memory that the host cannot touch, streams with an order of their own.

// release is a vendor's library, as the simulator stands for it.
type release struct {
	name                string
	use                 func(t testing.TB, options string)
	options             string
	fault, broken, lost string // codes: of a call that is to fail, of a copy that failed, and of a lost device
	spreads             bool   // a copy that failed has all later calls on the device fail
}

// releases copy small blocks in different ways: gathered, in batches, and one by one.
var releases = []release{
	{"NPUs with batches", simtest.Use, "", "507899", "507013", "507010", false},
	{"NPUs without batches", simtest.Use, simtest.OlderCANN, "507899", "507013", "507010", false},
	{"GPUs with batches", simtest.UseCUDA, "", "999", "700", "46", true},
	{"GPUs without batches", simtest.UseCUDA, simtest.OlderCUDA, "999", "700", "46", true},
}

func onReleases(t *testing.T, test func(t *testing.T, r release)) {
	for _, r := range releases {
		t.Run(r.name, func(t *testing.T) {
			r.use(t, r.options)
			test(t, r)
		})
	}
}

// simulated is a simulated device with its staging.
type simulated struct {
	t       *testing.T
	memory  *simtest.Device
	staging *staging.Device
}

func newSimulated(t *testing.T, index int, o staging.Options) *simulated {
	runtime := simtest.Runtime(t)
	d, err := runtime.Open(index)
	require.NoError(t, err)
	return &simulated{t, simtest.NewDevice(t, index), staging.New(d, fmt.Sprintf("%s:%d", runtime.Name(), index), o)}
}

// stretch is bytes on a device that the test knows.
type stretch struct {
	addr uintptr
	want []byte
}

func (n *simulated) stretch(length int) *stretch {
	s := &stretch{n.memory.Alloc(length), make([]byte, length)}
	fill(s.want)
	n.memory.Write(s.addr, s.want)
	return s
}

// transfer does a job of random moves between a stretch and a lease, and compares.
func (n *simulated) transfer(r *rand.Rand, dir staging.Direction, s *stretch) error {
	a := n.staging.Account(dir, staging.Role(r.IntN(2)), nil)
	defer a.Close()
	l, err := a.Lease(n.t.Context(), uint64(1+r.IntN(4))*staging.Granule)
	if err != nil {
		return err
	}
	defer l.Release()
	block := memoryAt(l.Addr, l.Length)
	fill(block)
	moves := n.moves(r, l, s)
	if err := do(n.staging, dir, moves); err != nil {
		return err
	}
	for _, m := range moves {
		on, in := s.want[m.Device-s.addr:][:m.Length], block[m.Block-l.Addr:][:m.Length]
		if dir == staging.In {
			copy(on, in)
		} else if !bytes.Equal(on, in) {
			return fmt.Errorf("a move of %d bytes brought wrong ones", m.Length)
		}
	}
	return nil
}

// moves fills a lease with moves of random blocks of the stretch, at any offset, none twice.
func (n *simulated) moves(r *rand.Rand, l *staging.Lease, s *stretch) []staging.Move {
	var moves []staging.Move
	from, end := 0, uint64(0)
	for {
		length := 1 + r.IntN(5000)
		if r.IntN(10) == 0 {
			length = 64*kib + r.IntN(64*kib)
		}
		if r.IntN(2) == 0 {
			from = (from + 63) &^ 63
		}
		at := n.staging.Place(end, s.addr+uintptr(from), uint64(length))
		if from+length > len(s.want) || at+uint64(length) > l.Length {
			break
		}
		moves = append(moves, staging.Move{Device: s.addr + uintptr(from), Block: l.Addr + uintptr(at), Length: uint64(length)})
		from, end = from+length+r.IntN(100), at+uint64(length)
	}
	r.Shuffle(len(moves), func(i, j int) { moves[i], moves[j] = moves[j], moves[i] })
	return moves
}

// check compares what is on the device.
func (s *stretch) check(n *simulated) {
	require.True(n.t, bytes.Equal(s.want, n.memory.Read(s.addr, len(s.want))), "wrong bytes on the device")
}

// TestRandomJobsOnSimulatedDevices has streams delay whatever they may: what is not awaited shows as wrong bytes.
func TestRandomJobsOnSimulatedDevices(t *testing.T) {
	onReleases(t, func(t *testing.T, r release) {
		simtest.NoLeaks(t)
		for seed := range uint64(4) {
			simtest.Seed(t, seed)
			randomJobs(t, seed)
		}
	})
}

func randomJobs(t *testing.T, seed uint64) {
	devices := []*simulated{newSimulated(t, 0, options()), newSimulated(t, 1, options())}
	var stretches []*stretch
	var running sync.WaitGroup
	for i := range 8 {
		n := devices[i%2]
		s := n.stretch(512 * kib)
		stretches = append(stretches, s)
		running.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 20 {
				assert.NoError(t, n.transfer(r, staging.Direction(r.IntN(2)), s))
			}
		})
	}
	running.Wait()
	for i, s := range stretches {
		s.check(devices[i%2])
	}
	for _, n := range devices {
		require.NoError(t, n.staging.Close())
		for _, dir := range []staging.Direction{staging.Out, staging.In} {
			require.EqualValues(t, 0, n.staging.Stats(dir).Failed)
		}
	}
}

// simulatedWork does a few jobs of both directions, and returns how many failed.
func (n *simulated) simulatedWork(s *stretch) (failed []error) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 6 {
		if err := n.transfer(r, staging.Direction(i%2), s); err != nil {
			failed = append(failed, err)
			n.memory.Write(s.addr, s.want) // of the bytes of a job that failed nothing is known
		}
	}
	return failed
}

// TestEveryCallOfALibraryMayFail has each function fail at its first, middle and last use.
func TestEveryCallOfALibraryMayFail(t *testing.T) {
	onReleases(t, func(t *testing.T, r release) {
		simtest.Cost(t, "d2h=25/1000,h2d=25/1000") // every wait takes a while
		var calls map[string]uint64
		t.Run("none", func(t *testing.T) { calls = callsOfStaging(t) })
		for function, uses := range calls {
			for _, nth := range slices.Compact([]uint64{1, (uses + 1) / 2, uses}) {
				t.Run(fmt.Sprintf("%s %d of %d", function, nth, uses), func(t *testing.T) { simulatedFault(t, r, function, nth) })
			}
		}
	})
}

// callsOfStaging is how often each function is called for the jobs of simulatedWork.
func callsOfStaging(t *testing.T) map[string]uint64 {
	simtest.NoLeaks(t)
	n := newSimulated(t, 0, options())
	s := n.stretch(512 * kib)
	simtest.ResetCounters(t)
	require.Empty(t, n.simulatedWork(s))
	require.NoError(t, n.staging.Close())
	calls := map[string]uint64{}
	for function, uses := range simtest.TakeReport(t).Calls {
		switch {
		case uses == 0, strings.HasSuffix(function, "Init"), strings.HasSuffix(function, "Count"):
		case function == "cuEventQuery": // as often as there is time for
			calls[function] = 1
		default:
			calls[function] = uses
		}
	}
	return calls
}

func simulatedFault(t *testing.T, r release, function string, nth uint64) {
	simtest.NoLeaks(t)
	n := newSimulated(t, 0, options())
	s := n.stretch(512 * kib)
	simtest.Faults(t, fmt.Sprintf("%s:%d", function, nth))
	failed := n.simulatedWork(s)
	closed := n.staging.Close()
	simtest.Faults(t, "")
	require.EqualValues(t, 1, simtest.TakeReport(t).Faults, "the fault has happened")
	require.LessOrEqual(t, len(failed), 1)
	for _, err := range append(failed, closed) {
		if err != nil {
			require.ErrorContains(t, err, r.fault)
			require.ErrorContains(t, err, strings.TrimSuffix(function, "_v2"))
		}
	}
	s.check(n)
}

func TestACopyThatFailsOnTheDeviceFailsItsJob(t *testing.T) {
	onReleases(t, func(t *testing.T, r release) {
		simtest.NoLeaks(t)
		n := newSimulated(t, 0, options())
		s := n.stretch(512 * kib)
		simtest.Faults(t, "exec:2")
		if r.spreads {
			n.failsFromNowOn(r, s)
			return
		}
		failed := n.simulatedWork(s)
		require.Len(t, failed, 1)
		require.ErrorContains(t, failed[0], r.broken)
		s.check(n)
		require.NoError(t, n.staging.Close())
	})
}

// failsFromNowOn does jobs until one fails. All others fail as well then, soon and with the reason, and so does Close.
func (n *simulated) failsFromNowOn(r release, s *stretch) {
	random := rand.New(rand.NewPCG(1, 2))
	var err error
	for err == nil {
		err = n.transfer(random, staging.Out, s)
	}
	for i := range 6 {
		require.ErrorContains(n.t, err, "failed with "+r.broken)
		err = n.transfer(random, staging.Direction(i%2), s)
	}
	require.ErrorContains(n.t, n.staging.Close(), "failed with "+r.broken)
	simtest.Faults(n.t, "") // which the device recovers with
}

func TestALostDeviceFailsItsJobsOnly(t *testing.T) {
	onReleases(t, func(t *testing.T, r release) {
		simtest.NoLeaks(t)
		lost, other := newSimulated(t, 0, options()), newSimulated(t, 1, options())
		first, second := lost.stretch(512*kib), other.stretch(512*kib)
		simtest.Faults(t, "lost:0@3")
		failed := 0
		for range 6 {
			if err := lost.transfer(rand.New(rand.NewPCG(1, 2)), staging.Out, first); err != nil {
				require.ErrorContains(t, err, r.lost)
				failed++
			}
		}
		require.NotZero(t, failed)
		require.Empty(t, other.simulatedWork(second))
		require.NoError(t, other.staging.Close())
		require.ErrorContains(t, lost.staging.Close(), r.lost)
		simtest.Faults(t, "")
	})
}

func TestAHangingCopyFailsItsJobInTimeAndIsNotWaitedForByClose(t *testing.T) {
	onReleases(t, func(t *testing.T, r release) {
		simtest.NoLeaks(t)
		o := options()
		h := newHolds()
		o.Timeout, o.Hold = time.Second, h.hold // a part of it is for the stream to come to rest, on a busy machine too
		n := newSimulated(t, 0, o)
		s := n.stretch(512 * kib)
		simtest.Faults(t, "exec:3=hang")
		failed := n.simulatedWork(s)
		require.NotEmpty(t, failed)
		require.ErrorContains(t, failed[0], "not done within 1s")
		for _, err := range failed[1:] {
			require.ErrorContains(t, err, "may still write to this memory")
		}
		simtest.ReleaseHangs(t)
		require.Eventually(t, h.isEmpty, 10*time.Second, time.Millisecond, "the late copies have ended")
		require.NoError(t, n.staging.Close())
	})
}
