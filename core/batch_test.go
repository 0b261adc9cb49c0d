package core_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"kvferry/core"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	waiting   = core.Waiting
	completed = core.Completed
	timedOut  = core.TimedOut
	failed    = core.Failed
)

var errBroken = errors.New("the connection broke")

func TestRequestHasTheLayoutOfTheCInterface(t *testing.T) {
	var r core.Request
	assert.EqualValues(t, 40, unsafe.Sizeof(r))
	assert.EqualValues(t, 0, unsafe.Offsetof(r.Opcode))
	assert.EqualValues(t, 8, unsafe.Offsetof(r.Local))
	assert.EqualValues(t, 16, unsafe.Offsetof(r.Target))
	assert.EqualValues(t, 24, unsafe.Offsetof(r.Remote))
	assert.EqualValues(t, 32, unsafe.Offsetof(r.Length))
	assert.Equal(t, []uint32{0, 4, 5, 6}, []uint32{uint32(waiting), uint32(completed), uint32(timedOut), uint32(failed)})
}

func TestTaskIsWaitingUntilItsLastByteIsSettled(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 1)
	held := p.submit(t, b, p.writes(100)...)

	for _, part := range []struct{ from, length uint64 }{{90, 10}, {0, 1}, {40, 50}, {1, 38}} {
		held.Settle(part.from, part.length, nil)
		require.Equal(t, []core.State{waiting}, states(t, b))
		require.False(t, b.Done())
	}
	held.Settle(39, 1, nil)
	state, bytes, err := b.Status(0)
	require.NoError(t, err)
	require.Equal(t, completed, state)
	require.EqualValues(t, 100, bytes)
	require.True(t, b.Done())
	require.NoError(t, b.Err())
}

func TestOneSettledRangeMaySpanSeveralTasks(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 5)
	held := p.submit(t, b, p.writes(10, 20, 0, 30, 40)...)

	held.Settle(5, 50, nil) // the second half of the first up to the middle of the fourth
	require.Equal(t, []core.State{waiting, completed, completed, waiting, waiting}, states(t, b))
	held.Settle(55, 45, errBroken)
	require.Equal(t, []core.State{waiting, completed, completed, failed, failed}, states(t, b))
	held.Settle(0, 5, nil)
	require.Equal(t, []core.State{completed, completed, completed, failed, failed}, states(t, b))
	require.Equal(t, core.Summary{Tasks: 5, Completed: 3, Failed: 2, Bytes: 30}, b.Summary())
}

func TestFailureIsReportedOnlyWhenNoByteMovesAnyMore(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 2)
	held := p.submit(t, b, p.writes(10, 10)...)

	held.Settle(0, 5, errBroken)
	require.Equal(t, []core.State{waiting, waiting}, states(t, b))
	require.ErrorIs(t, b.Err(), errBroken, "the reason is known at once")
	require.Equal(t, core.Summary{Tasks: 2}, b.Summary())
	requireCode(t, status.BatchBusy, p.FreeBatch(b))
	held.Settle(5, 5, nil)
	require.Equal(t, []core.State{failed, waiting}, states(t, b))
	held.Settle(10, 10, nil)
	require.Equal(t, []core.State{failed, completed}, states(t, b))
	require.NoError(t, p.FreeBatch(b))
}

func TestBatchErrorSaysWhatFailedFirstAndWhy(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 2)
	held := p.submit(t, b,
		core.Request{Opcode: core.Read, Local: 0xabc000, Target: p.segment, Remote: 0xdef000, Length: 77},
		core.Request{Opcode: core.Write, Local: 0x1000, Target: p.segment, Remote: 0x2000, Length: 8})
	held.Settle(0, 77, status.Errorf(status.Socket, "peer 10.0.0.1: %w", errBroken))
	held.Settle(77, 8, errors.New("a later one"))

	requireCode(t, status.Socket, b.Err())
	require.ErrorIs(t, b.Err(), errBroken)
	for _, part := range []string{"READ", "77 bytes", "0xabc000", "0xdef000", fmt.Sprint("segment ", p.segment), "10.0.0.1"} {
		require.ErrorContains(t, b.Err(), part)
	}
}

func TestEmptyRequestCompletesWhateverItsAddress(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 4)
	require.NoError(t, p.Submit(b, []core.Request{
		{Opcode: core.Write, Target: p.segment},
		{Opcode: core.Read, Local: math.MaxUint64, Target: p.segment, Remote: math.MaxUint64},
		{Opcode: core.Read, Local: 1, Target: core.LocalSegment, Remote: 1},
	}, nil))
	require.Equal(t, []core.State{completed, completed, completed}, states(t, b))
	require.True(t, b.Done())
	require.Zero(t, p.transport.Calls().Submit)
}

func TestRangeThatWrapsFailsItsOwnTaskOnly(t *testing.T) {
	p := startPair(t, nil)
	reqs := p.writes(8, math.MaxUint64, 8, math.MaxUint64-0x100, 8, 1<<63, 8)
	reqs[5].Local = 1 << 63 // its end would be address 0
	reqs[5].Remote = 0
	b := p.batch(t, len(reqs))
	held := p.submit(t, b, reqs...)
	require.EqualValues(t, 4*8, held.Bytes)
	require.Equal(t, []core.State{waiting, failed, waiting, failed, waiting, failed, waiting}, states(t, b))
	requireCode(t, status.InvalidArgument, b.Err())
	held.SettleRest(nil)
	require.Equal(t, core.Summary{Tasks: 7, Completed: 4, Failed: 3, Bytes: 32}, b.Summary())
}

func TestLengthsThatCannotBeAddedUpDoNotHang(t *testing.T) {
	p := startPair(t, nil)
	const huge = 1 << 62
	b := p.batch(t, 6)
	held := p.submit(t, b, p.writes(huge, huge, huge, huge, huge, 8)...)
	held.SettleRest(errBroken)
	wait(t, b)
	require.Equal(t, core.Summary{Tasks: 6, Failed: 6}, b.Summary())
}

func TestTaskIdsGoOnOverSeveralSubmits(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 6)
	first := p.submit(t, b, p.writes(1, 2)...)
	second := p.submit(t, b, p.writes(3)...)
	third := p.submit(t, b, p.writes(4, 5, 6)...)

	second.SettleRest(nil)
	require.Equal(t, []core.State{waiting, waiting, completed, waiting, waiting, waiting}, states(t, b))
	third.Settle(4, 5, errBroken)
	require.Equal(t, []core.State{waiting, waiting, completed, waiting, failed, waiting}, states(t, b))
	first.SettleRest(nil)
	third.SettleRest(nil)
	for id, want := range []uint64{1, 2, 3, 4, 0, 6} {
		_, bytes, err := b.Status(id)
		require.NoError(t, err)
		require.Equal(t, want, bytes)
	}
	for _, id := range []int{-1, 6, math.MaxInt, math.MinInt} {
		_, _, err := b.Status(id)
		requireCode(t, status.InvalidArgument, err)
		require.ErrorContains(t, err, fmt.Sprint(id))
	}
}

func TestSubmitOverCapacityAddsNothing(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 3)
	held := p.submit(t, b, p.writes(1, 1)...)
	requireCode(t, status.TooManyRequests, p.Submit(b, p.writes(1, 1), nil))
	require.EqualValues(t, 2, b.Summary().Tasks)
	held.SettleRest(nil)
	requireCode(t, status.TooManyRequests, p.Submit(b, p.writes(1, 1), nil)) // ended tasks count too
	p.submit(t, b, p.writes(1)...).SettleRest(nil)
	require.Equal(t, core.Summary{Tasks: 3, Completed: 3, Bytes: 3}, b.Summary())

	none := p.batch(t, 0)
	require.NoError(t, p.Submit(none, nil, nil))
	requireCode(t, status.TooManyRequests, p.Submit(none, p.writes(0), nil))
	require.NoError(t, p.FreeBatch(none))
}

func TestSubmitWithOneWrongRequestAddsNothing(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 10)
	for name, spoil := range map[string]func(*core.Request){
		"opcode 2":              func(r *core.Request) { r.Opcode = 2 },
		"opcode -1":             func(r *core.Request) { r.Opcode = -1 },
		"segment never opened":  func(r *core.Request) { r.Target = p.segment + 1 },
		"negative segment":      func(r *core.Request) { r.Target = -1 },
		"empty, and no segment": func(r *core.Request) { r.Target, r.Length = 99, 0 },
	} {
		reqs := p.writes(1, 1, 1)
		spoil(&reqs[2])
		requireCode(t, status.InvalidArgument, p.Submit(b, reqs, nil))
		require.Zero(t, b.Summary().Tasks, name)
	}
	require.Zero(t, p.transport.Calls().Submit)
	require.NoError(t, p.FreeBatch(b))
}

func TestSubmitWithoutTransport(t *testing.T) {
	e := startEngine(t, metadatatest.NewDirectory(), nil)
	b, err := e.AllocateBatch(2)
	require.NoError(t, err)
	requireCode(t, status.NotSupportedTransport, e.Submit(b, []core.Request{{Target: 1, Length: 1}}, nil))
	require.NoError(t, e.FreeBatch(b))
}

func TestEachSegmentGetsOneWorkWithItsTasksInOrder(t *testing.T) {
	p := startPair(t, nil)
	second := open(t, p.Engine, startPeer(t, p.directory).Name())

	const each = 50
	reqs := make([]core.Request, 0, 2*each)
	for i := range uint64(each) {
		for _, target := range []core.SegmentID{p.segment, second} {
			reqs = append(reqs, core.Request{Opcode: core.Write, Local: 0x1000, Target: target, Remote: i, Length: 1})
		}
	}
	b := p.batch(t, len(reqs))
	require.NoError(t, p.Submit(b, reqs, nil))
	held := p.transport.Held()
	require.Len(t, held, 2)
	for i, h := range held {
		require.Equal(t, []core.SegmentID{p.segment, second}[i], h.Segment.ID)
		require.EqualValues(t, each, h.Bytes)
		remote := uint64(0)
		for task := h.Head; task >= 0; task = h.Tasks[task].Next {
			require.Equal(t, h.Segment.ID, h.Tasks[task].Target)
			require.Equal(t, remote, h.Tasks[task].Remote)
			remote++
		}
		require.EqualValues(t, each, remote)
	}
}

func TestRequestsAreNotKept(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 1)
	reqs := p.writes(5)
	held := p.submit(t, b, reqs...)
	clear(reqs)
	require.EqualValues(t, 5, held.Tasks[held.Head].Length)
	require.EqualValues(t, 0x20000, held.Tasks[held.Head].Remote)
}

func TestBatchIsFreedOnceItsTasksHaveEnded(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 3)
	held := p.submit(t, b, p.writes(1, 1)...)
	held.Settle(0, 1, nil)
	requireCode(t, status.BatchBusy, p.FreeBatch(b))
	found, err := p.Batch(b.ID())
	require.NoError(t, err)
	require.Same(t, b, found)
	held.SettleRest(nil)
	require.NoError(t, p.FreeBatch(b))

	requireCode(t, status.InvalidArgument, p.FreeBatch(b))
	requireCode(t, status.InvalidArgument, p.Submit(b, p.writes(1), nil))
	_, err = p.Batch(b.ID())
	requireCode(t, status.InvalidArgument, err)
}

func TestBatchIDsAreNeverUsedTwiceNorByAnotherEngine(t *testing.T) {
	p := startPair(t, nil)
	seen := map[uint64]bool{}
	for range 100 {
		for _, e := range []*core.Engine{p.Engine, p.peer} {
			b, err := e.AllocateBatch(1)
			require.NoError(t, err)
			require.NotContains(t, seen, b.ID())
			require.True(t, b.ID() > 0 && b.ID() <= math.MaxInt64)
			seen[b.ID()] = true
			require.NoError(t, e.FreeBatch(b))
		}
	}
	b := p.batch(t, 1)
	_, err := p.peer.Batch(b.ID())
	requireCode(t, status.InvalidArgument, err)
	for _, id := range []uint64{0, b.ID() + 1000, math.MaxUint64} {
		_, err := p.Batch(id)
		requireCode(t, status.InvalidArgument, err)
	}
}

func TestTaskTimesOutAfterTheSliceTimeout(t *testing.T) {
	p := startPairWith(t, &transporttest.Transport{OnSubmit: func(h *transporttest.Held) { h.Settle(0, 15, nil) }},
		func(o *core.Options) { o.Config.SliceTimeout = time.Millisecond })
	b := p.batch(t, 3)
	require.NoError(t, p.Submit(b, p.writes(10, 10, 10), nil))
	wait(t, b)
	require.Equal(t, []core.State{completed, timedOut, timedOut}, states(t, b))
	require.ErrorIs(t, b.Err(), core.ErrSliceTimeout)
	require.Equal(t, core.Summary{Tasks: 3, Completed: 1, Failed: 2, TimedOut: 2, Bytes: 10}, b.Summary())
}

func TestTimedOutTaskIsReportedOnlyWhenNoByteMovesAnyMore(t *testing.T) {
	aborted := make(chan struct{}, 1)
	p := startPairWith(t, &transporttest.Transport{KeepAborted: true, OnAbort: func() { aborted <- struct{}{} }},
		func(o *core.Options) { o.Config.SliceTimeout = time.Millisecond })
	b := p.batch(t, 1)
	held := p.submit(t, b, p.writes(10)...)
	receive(t, aborted)
	require.ErrorIs(t, held.Aborted(), core.ErrSliceTimeout)
	require.Equal(t, []core.State{waiting}, states(t, b))
	held.SettleRest(held.Aborted())
	require.Equal(t, []core.State{timedOut}, states(t, b))
}

func TestSliceTimeoutConcernsItsOwnSubmission(t *testing.T) {
	aborted := make(chan struct{}, 1)
	p := startPairWith(t, &transporttest.Transport{KeepAborted: true, OnAbort: func() { aborted <- struct{}{} }},
		func(o *core.Options) { o.Config.SliceTimeout = time.Second / 2 })
	b := p.batch(t, 2)
	first := p.submit(t, b, p.writes(10)...)
	receive(t, aborted)
	second := p.submit(t, b, p.writes(10)...)
	require.NoError(t, second.Aborted())
	second.SettleRest(nil)
	first.SettleRest(first.Aborted())
	require.Equal(t, []core.State{timedOut, completed}, states(t, b))
}

func TestGivenUpTasksAreFailedNotTimedOut(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 1)
	held := p.submit(t, b, p.writes(10)...)
	held.SettleRest(core.ErrDiscarded)
	require.Equal(t, []core.State{failed}, states(t, b))
	require.Equal(t, core.Summary{Tasks: 1, Failed: 1}, b.Summary())
}

func TestWaiterIsCalledOnceAfterTheLastTaskEnded(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 2)
	calls := 0
	b.OnDone(func() { calls++ })
	require.Equal(t, 1, calls, "a batch without tasks is done")

	held := p.submit(t, b, p.writes(1, 1)...)
	b.OnDone(func() { calls++ })
	cancel := b.OnDone(func() { calls += 100 })
	held.Settle(0, 1, nil)
	require.Equal(t, 1, calls)
	cancel()
	held.Settle(1, 1, errBroken)
	require.Equal(t, 2, calls)
	cancel()
	b.OnDone(func() { calls++ })
	require.Equal(t, 3, calls)
}

func TestWaitersAndTheirCancellationRaceWithTheEndOfABatch(t *testing.T) {
	p := startPair(t, nil)
	for range 200 {
		b := p.batch(t, 8)
		held := p.submit(t, b, p.writes(1, 1, 1, 1, 1, 1, 1, 1)...)
		var all sync.WaitGroup
		var called atomic.Int64
		for i := range uint64(8) {
			all.Go(func() { held.Settle(i, 1, nil) })
			all.Go(func() {
				done := make(chan struct{})
				b.OnDone(func() { called.Add(1); close(done) })
				<-done
				if got := b.Summary().Completed; got != 8 {
					t.Errorf("a waiter was called with %d of 8 tasks completed", got)
				}
			})
			all.Go(func() {
				var canceled atomic.Bool
				cancel := b.OnDone(func() {
					if canceled.Load() {
						t.Error("called after cancel had returned")
					}
				})
				cancel()
				canceled.Store(true)
			})
		}
		all.Wait()
		require.EqualValues(t, 8, called.Load())
		require.NoError(t, p.FreeBatch(b))
	}
}

func TestStatusQueriesRaceWithSubmits(t *testing.T) {
	p := startPair(t, nil)
	const submits, each = 50, 4
	b := p.batch(t, submits*each)
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				sum := b.Summary()
				for id := range int(sum.Tasks) {
					if state, _, err := b.Status(id); err != nil || state != waiting && state != completed {
						t.Errorf("task %d is in state %d: %v", id, state, err)
					}
				}
			}
		})
	}
	for range submits {
		writers.Go(func() {
			if err := p.Submit(b, p.writes(1, 1, 1, 1), nil); err != nil {
				t.Error(err)
			}
			p.transport.SettleAll(nil)
		})
	}
	writers.Wait()
	p.transport.SettleAll(nil)
	wait(t, b)
	close(stop)
	readers.Wait()
	require.Equal(t, core.Summary{Tasks: submits * each, Completed: submits * each, Bytes: submits * each}, b.Summary())
}

// ending is a range that a test settles.
type ending struct {
	held         *transporttest.Held
	from, length uint64
	err          error
}

func TestTasksEndAsTheirRangesDo(t *testing.T) {
	p := startPair(t, nil)
	second := open(t, p.Engine, startPeer(t, p.directory).Name())
	local := pages(t, 1<<16)
	require.NoError(t, p.Register(at(local), 1<<15, "cpu:0", true))
	require.NoError(t, p.Register(at(local)+1<<15, 1<<15, "cpu:0", true))
	p.SetGrace(time.Hour) // a pin that is left hangs the test

	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			endAtRandom(t, p, local, []core.SegmentID{p.segment, second}, rand.New(rand.NewPCG(seed, 7)))
		})
	}
	require.NoError(t, p.UnregisterBatch([]uintptr{at(local), at(local) + 1<<15}))
}

// endAtRandom submits random requests, settles their bytes in random ranges from several goroutines, and compares
// what has become of the tasks with what has become of the ranges.
func endAtRandom(t *testing.T, p *pair, local []byte, targets []core.SegmentID, random *rand.Rand) {
	const tasks = 60
	b := p.batch(t, tasks)
	var expected []core.State
	var endings []ending
	var bytes uint64
	for len(expected) < tasks {
		reqs := make([]core.Request, 1+random.IntN(min(20, tasks-len(expected))))
		for i := range reqs {
			reqs[i] = core.Request{
				Opcode: core.Opcode(random.IntN(2)), Local: at(local) + uintptr(random.IntN(1<<16-64)),
				Target: targets[random.IntN(2)], Remote: 1, Length: random.Uint64N(50) * random.Uint64N(2),
			}
			expected = append(expected, completed)
			bytes += reqs[i].Length
		}
		before := len(p.transport.Held())
		require.NoError(t, p.Submit(b, reqs, nil))
		first := len(expected) - len(reqs)
		for _, h := range p.transport.Held()[before:] {
			endings = append(endings, cutAtRandom(h, random, func(task int32) {
				if expected[first+int(task)] == completed {
					expected[first+int(task)] = failed
					bytes -= h.Tasks[task].Length
				}
			})...)
		}
	}
	random.Shuffle(len(endings), func(i, j int) { endings[i], endings[j] = endings[j], endings[i] })
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := g; i < len(endings); i += 4 {
				endings[i].held.Settle(endings[i].from, endings[i].length, endings[i].err)
			}
		})
	}
	all.Wait()

	require.True(t, b.Done())
	require.Equal(t, expected, states(t, b))
	require.Equal(t, bytes, b.Summary().Bytes)
	require.NoError(t, p.FreeBatch(b))
}

// cutAtRandom cuts a work into ranges, some of which fail: fail is called for the tasks in these.
func cutAtRandom(h *transporttest.Held, random *rand.Rand, fail func(task int32)) (cut []ending) {
	for from := uint64(0); from < h.Bytes; {
		e := ending{held: h, from: from, length: 1 + random.Uint64N(min(70, h.Bytes-from))}
		if random.IntN(10) == 0 {
			e.err = errBroken
			start := uint64(0)
			for task := h.Head; task >= 0; task = h.Tasks[task].Next {
				end := start + h.Tasks[task].Length
				if start < e.from+e.length && e.from < end {
					fail(task)
				}
				start = end
			}
		}
		cut = append(cut, e)
		from += e.length
	}
	return cut
}

func TestDiscardReturnsOnlyWhenTheTransportHasSettled(t *testing.T) {
	aborted := make(chan struct{}, 1)
	p := startPairWith(t, &transporttest.Transport{KeepAborted: true, OnAbort: func() { aborted <- struct{}{} }}, nil)
	b := p.batch(t, 1)
	held := p.submit(t, b, p.writes(10)...)

	var settled atomic.Bool
	returned := make(chan error, 1)
	go func() {
		err := p.DiscardBatch(b)
		if !settled.Load() {
			err = errors.New("returned while bytes were moving")
		}
		returned <- err
	}()
	receive(t, aborted)
	require.ErrorIs(t, held.Aborted(), core.ErrDiscarded)
	held.Settle(0, 9, held.Aborted())
	settled.Store(true)
	held.Settle(9, 1, held.Aborted())
	require.NoError(t, receive(t, returned))
	_, err := p.Batch(b.ID())
	requireCode(t, status.InvalidArgument, err)
}

func TestDiscardOfABatchThatIsDoneFreesIt(t *testing.T) {
	p := startPair(t, nil)
	b := p.batch(t, 1)
	p.submit(t, b, p.writes(10)...).SettleRest(nil)
	require.NoError(t, p.DiscardBatch(b))
	require.Zero(t, p.transport.Calls().Abort)
	requireCode(t, status.InvalidArgument, p.DiscardBatch(b))
}

func TestDiscardLeavesOtherBatchesAlone(t *testing.T) {
	p := startPair(t, nil)
	kept, discarded := p.batch(t, 1), p.batch(t, 1)
	held := p.submit(t, kept, p.writes(10)...)
	p.submit(t, discarded, p.writes(10)...)
	require.NoError(t, p.DiscardBatch(discarded))
	require.Equal(t, []core.State{waiting}, states(t, kept))
	held.SettleRest(nil)
	require.Equal(t, []core.State{completed}, states(t, kept))
}

func TestSubmitAllocatesNothingPerRequest(t *testing.T) {
	for _, c := range []struct {
		name           string
		regions, peers int
	}{
		{"memory that is not registered", 0, 1},
		{"one region", 1, 1},
		{"many regions", 40, 1},
		{"several peers", 1, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			allocations := func(requests int) (fewest float64) {
				p := startPrompt(t, requests, c.regions, c.peers)
				fewest = math.Inf(1)
				for range 5 { // the garbage collector and other goroutines add to a run now and then
					fewest = min(fewest, testing.AllocsPerRun(4, func() { p.transfer(t) }))
				}
				return fewest
			}
			require.InDelta(t, allocations(64), allocations(4096), 1, "with 64 requests, and with 4096; each is rounded")
		})
	}
}

func TestLargeBatch(t *testing.T) {
	p := startPair(t, nil)
	const tasks = 100_000
	lengths := make([]uint64, tasks)
	for i := range lengths {
		lengths[i] = 1 + uint64(i%3)
	}
	b := p.batch(t, tasks)
	held := p.submit(t, b, p.writes(lengths...)...)
	held.SettleRest(nil)
	require.Equal(t, core.Summary{Tasks: tasks, Completed: tasks, Bytes: held.Bytes}, b.Summary())
}
