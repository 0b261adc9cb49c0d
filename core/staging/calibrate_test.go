package staging_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/staging"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// These tests measure simulated devices, whose events tell the time by the costs of the copies: neither the machine nor its load
// makes a difference.

// measuring has tests measure all lengths, however slow the machine is.
func measuring() staging.Options {
	o := options()
	o.Copying, o.MeasureTime, o.GatherBelow = staging.Measured, time.Hour, 256*kib
	return o
}

// unmeasured is a device of which nothing is known yet.
func unmeasured(t *testing.T, cost string, o staging.Options) *simulated {
	simtest.Cost(t, cost)
	n := newSimulated(t, 0, o)
	tablesOf(t).Forget()
	t.Cleanup(tablesOf(t).Forget)
	t.Cleanup(func() { require.NoError(t, n.staging.Close()) })
	return n
}

func tablesOf(t *testing.T) *device.Tables {
	d, err := simtest.Runtime(t).Open(0)
	require.NoError(t, err)
	return d.(device.Timer).Tables()
}

// blocks does a job of so many blocks, with gaps of different lengths between them on the device.
func (n *simulated) blocks(dir staging.Direction, length, count int) {
	n.prepare(dir, length, count, 1)()
}

// prepare allocates what blocks needs, and returns the job. With uneven 0 all gaps are of one length.
func (n *simulated) prepare(dir staging.Direction, length, count, uneven int) (job func()) {
	offset := func(i int) int { return i*(length+256) + i*7%3*64*uneven }
	s := n.stretch(offset(count) + 64)
	a := n.staging.Account(dir, staging.Initiator, nil)
	l, err := a.Lease(n.t.Context(), uint64(length*count))
	require.NoError(n.t, err)
	block := memoryAt(l.Addr, l.Length)
	fill(block)
	var moves []staging.Move
	for i := range count {
		moves = append(moves, staging.Move{
			Device: s.addr + uintptr(offset(i)), Block: l.Addr + uintptr(i*length), Length: uint64(length),
		})
	}
	return func() {
		defer a.Close()
		defer l.Release()
		require.NoError(n.t, do(n.staging, dir, moves))
		for i := range count {
			on, in := s.want[offset(i):][:length], block[i*length:][:length]
			if dir == staging.In {
				copy(on, in)
			} else {
				require.True(n.t, bytes.Equal(on, in))
			}
		}
		s.check(n)
	}
}

// measured has both directions measured.
func (n *simulated) measured() {
	for _, dir := range []staging.Direction{staging.Out, staging.In} {
		n.blocks(dir, 4096, 4)
		require.Eventually(n.t, func() bool { return n.staging.Table(dir) != nil }, time.Minute, time.Millisecond)
	}
}

// profiles are devices, and how many blocks of lengths are copied fastest on them: out and in.
var profiles = []struct {
	name  string
	use   func(t testing.TB, options string)
	older string // options for a release without batches
	cost  string
	want  map[[2]int][2]device.Way
}{
	{"an NPU as it is taken to be", simtest.Use, "", "npu-910b-guess", map[[2]int][2]device.Way{
		{4 << 10, 64}:  {device.Gather, device.Gather},
		{16 << 10, 15}: {device.Gather, device.Gather},
		{64 << 10, 4}:  {device.Gather, device.Gather},
	}},
	{"an NPU that does not gather well", simtest.Use, "", "npu-slow-within", map[[2]int][2]device.Way{
		{4 << 10, 60}:  {device.Single, device.Single},
		{16 << 10, 15}: {device.Single, device.Single},
		{64 << 10, 4}:  {device.Single, device.Single},
		{128 << 10, 2}: {device.Single, device.Single},
	}},
	{"an NPU with fast batches", simtest.Use, "", "batch=0.5", map[[2]int][2]device.Way{
		{4 << 10, 60}:  {device.Batch, device.Batch},
		{64 << 10, 4}:  {device.Batch, device.Batch},
		{128 << 10, 2}: {device.Batch, device.Batch},
	}},
	{"an NPU without batches", simtest.Use, simtest.OlderCANN, "batch=0.5", map[[2]int][2]device.Way{
		{4 << 10, 60}: {device.Gather, device.Gather},
	}},
	{"an H200", simtest.UseCUDA, "", "gpu-h200", map[[2]int][2]device.Way{
		{4 << 10, 60}: {device.Kernel, device.Kernel},
		{64 << 10, 4}: {device.Batch, device.Batch},
	}},
	{"an H200" + withoutKernels, simtest.UseCUDA, "", "gpu-h200", map[[2]int][2]device.Way{
		{4 << 10, 60}: {device.Batch, device.Batch},
		{64 << 10, 4}: {device.Batch, device.Batch},
	}},
	{"an older driver's H200" + withoutKernels, simtest.UseCUDA, simtest.OlderCUDA, "gpu-h200", map[[2]int][2]device.Way{
		{4 << 10, 60}: {device.Single, device.Single},
	}},
	{"a GPU" + withoutKernels + ", on which gathering is fast", simtest.UseCUDA, "", "d2h=50/20,h2d=50/20,d2d=1000/1,batch=15", map[[2]int][2]device.Way{
		{4 << 10, 60}: {device.Gather, device.Gather},
	}},
	{"a GPU" + withoutKernels + ", of which batches are slow one way", simtest.UseCUDA, "", "d2h=50/5,h2d=50/5,d2d=1000/5,batch-d2h=1,batch-h2d=20", map[[2]int][2]device.Way{
		{4 << 10, 60}: {device.Batch, device.Single},
	}},
	{"a device on which nothing takes any time", simtest.Use, "", "0", map[[2]int][2]device.Way{
		{4 << 10, 60}: {device.Gather, device.Gather},
	}},
}

// withoutKernels is in the names of GPUs that load no kernels.
const withoutKernels = " without kernels"

func TestBlocksAreCopiedAsTheDeviceCopiesThemFastest(t *testing.T) {
	for _, p := range profiles {
		t.Run(p.name, func(t *testing.T) {
			p.use(t, p.older)
			simtest.NoLeaks(t)
			n := unmeasured(t, p.cost, measuring())
			if strings.Contains(p.name, withoutKernels) {
				simtest.Faults(t, "cuModuleLoadData:1+")
			}
			n.measured()
			for blocks, ways := range p.want {
				for dir, want := range ways {
					before := n.staging.Stats(staging.Direction(dir))
					n.blocks(staging.Direction(dir), blocks[0], blocks[1])
					require.Equal(t, want, way(before, n.staging.Stats(staging.Direction(dir))), "%v of %v bytes, %v", blocks[1], blocks[0], staging.Direction(dir))
				}
			}
		})
	}
}

// way is that of the job between two counts.
func way(before, after staging.Stats) device.Way {
	switch {
	case after.Gathered > before.Gathered:
		return device.Gather
	case after.Batches > before.Batches:
		return device.Batch
	case after.Kernels > before.Kernels:
		return device.Kernel
	case after.Matrices > before.Matrices:
		return device.Matrix
	}
	return device.Single
}

// shapes are lengths of blocks, and how many of them a transfer has.
var shapes = [][2]int{{4 << 10, 64}, {4 << 10, 256}, {16 << 10, 256}, {64 << 10, 64}, {64 << 10, 256}, {1 << 20, 32}}

// work is what the device does for the blocks of a transfer, in jobs as large as a staging block. All of them take the same time,
// so one is done.
func (n *simulated) work(dir staging.Direction, length, count int) time.Duration {
	blocks := min(count, int(n.staging.BlockSize())/length)
	before := simtest.TakeReport(n.t).WorkedNs
	n.blocks(dir, length, blocks)
	return time.Duration(simtest.TakeReport(n.t).WorkedNs-before) * time.Duration(count/blocks)
}

func TestWhatWasMeasuredIsAsFastAsTheBestFixedWay(t *testing.T) {
	for _, c := range []struct {
		kind string
		use  func(t testing.TB, options string)
		ways []device.Way
		cost []string
	}{
		{"npu", simtest.Use, []device.Way{device.Single, device.Batch, device.Gather}, []string{"npu-910b-guess", "npu-slow-within", "gpu-h200", ""}},
		{"cuda", simtest.UseCUDA, []device.Way{device.Single, device.Batch, device.Gather, device.Kernel}, []string{"gpu-h200", "npu-slow-within"}},
	} {
		for _, cost := range c.cost {
			t.Run(c.kind+" "+cost, func(t *testing.T) {
				c.use(t, "")
				simtest.NoLeaks(t)
				measuredIsAsFastAs(t, cost, c.ways)
			})
		}
	}
}

// measuredIsAsFastAs compares what was measured with each fixed way.
func measuredIsAsFastAs(t *testing.T, cost string, ways []device.Way) {
	o := measuring()
	o.BlockSize, o.PoolSize = 2*mib, 8*mib
	n := unmeasured(t, cost, o)
	n.measured()
	for dir := range staging.In + 1 { // what a measurement does counts as work
		require.Eventually(t, func() bool { return !n.staging.Measures(dir) }, time.Minute, time.Millisecond)
	}
	var fixed []*simulated
	for _, way := range ways {
		o.Copying = staging.AlwaysBy(way)
		other := newSimulated(t, 0, o)
		defer func() { require.NoError(t, other.staging.Close()) }()
		fixed = append(fixed, other)
	}
	for dir := range staging.In + 1 {
		for _, shape := range shapes {
			least := time.Duration(math.MaxInt64)
			for i, other := range fixed {
				if ways[i] != device.Kernel || shape[0] < 32*kib { // for longer ones it must be a quarter faster: see device.Table
					least = min(least, other.work(dir, shape[0], shape[1]))
				}
			}
			require.LessOrEqual(t, n.work(dir, shape[0], shape[1])*9/10, least, "%d of %d bytes, %v", shape[1], shape[0], dir)
		}
	}
}

func TestBlocksAtOneDistanceAreCopiedAsAMatrixWhereThatIsFaster(t *testing.T) {
	for cost, want := range map[string]device.Way{"npu-910b-guess": device.Matrix, "npu-910b-guess,row=14": device.Gather} {
		t.Run(cost, func(t *testing.T) {
			simtest.NoLeaks(t)
			n := unmeasured(t, cost, measuring())
			n.measured()
			for dir := range staging.In + 1 {
				before := n.staging.Stats(dir)
				n.prepare(dir, 4096, 60, 0)()
				require.Equal(t, want, way(before, n.staging.Stats(dir)), dir)
			}
		})
	}
}

func TestUntilTheDeviceWasMeasuredItsDefaultIsUsed(t *testing.T) {
	simtest.NoLeaks(t)
	n := unmeasured(t, "npu-slow-within", measuring())
	require.True(t, tablesOf(t).Take(device.DeviceToHost), "another engine measures")
	n.blocks(staging.Out, 4096, 4)
	require.EqualValues(t, 4, n.staging.Stats(staging.Out).Gathered)
	require.Nil(t, n.staging.Table(staging.Out))
}

func TestASettingIsKeptAndNothingIsMeasured(t *testing.T) {
	for _, fixed := range []device.Way{device.Single, device.Batch, device.Gather} {
		t.Run(fixed.String(), func(t *testing.T) {
			simtest.NoLeaks(t)
			o := measuring()
			o.Copying = staging.AlwaysBy(fixed)
			n := unmeasured(t, "npu-slow-within", o)
			for dir := range staging.In + 1 {
				n.blocks(dir, 4096, 60)
				require.Equal(t, fixed, way(staging.Stats{}, n.staging.Stats(dir)))
				require.Nil(t, n.staging.Table(dir))
			}
			require.Zero(t, simtest.TakeReport(t).Calls["aclrtEventElapsedTime"])
		})
	}
}

func TestOneEngineMeasuresForAllOfTheProcess(t *testing.T) {
	simtest.NoLeaks(t)
	n := unmeasured(t, "npu-slow-within", measuring())
	n.measured()
	calls := simtest.TakeReport(t).Calls["aclrtEventElapsedTime"]
	require.NotZero(t, calls)
	other := newSimulated(t, 0, measuring())
	defer func() { require.NoError(t, other.staging.Close()) }()
	require.Same(t, n.staging.Table(staging.Out), other.staging.Table(staging.Out))
	other.blocks(staging.Out, 4096, 60)
	require.Equal(t, device.Single, way(staging.Stats{}, other.staging.Stats(staging.Out)))
	require.Equal(t, calls, simtest.TakeReport(t).Calls["aclrtEventElapsedTime"])
}

func TestADeviceThatCannotBeMeasuredKeepsItsDefault(t *testing.T) {
	for _, fault := range []string{
		"aclrtSetDevice:1", "aclrtCreateStream:1", "aclrtCreateEvent:2", "aclrtMalloc:1", "aclrtMallocHost:1", "aclrtEventElapsedTime:5",
	} {
		t.Run(fault, func(t *testing.T) {
			simtest.NoLeaks(t)
			o := measuring()
			warnings := observed(&o)
			n := unmeasured(t, "npu-slow-within", o)
			require.True(t, tablesOf(t).Take(device.DeviceToHost))
			n.blocks(staging.Out, 4096, 4) // makes what jobs need
			tablesOf(t).Forget()
			job := n.prepare(staging.Out, 4096, 4, 1)
			simtest.Faults(t, fault)
			job()
			require.Eventually(t, func() bool { return warnings.Len() > 0 }, time.Minute, time.Millisecond)
			simtest.Faults(t, "")
			n.blocks(staging.Out, 4096, 4)
			require.Nil(t, n.staging.Table(staging.Out))
			require.EqualValues(t, 12, n.staging.Stats(staging.Out).Gathered)
			require.Len(t, warnings.All(), 1, "it is said once")
			require.Contains(t, warnings.All()[0].Message, "could not be measured")
		})
	}
}

func TestClosingEndsAMeasurementWhichAnotherEngineMakesThen(t *testing.T) {
	for blocks := 2; blocks < 10; blocks++ {
		t.Run(fmt.Sprint(blocks), func(t *testing.T) {
			simtest.NoLeaks(t)
			n := unmeasured(t, "d2h=25/5000", measuring()) // a table takes seconds
			n.blocks(staging.Out, 4096, blocks)
			require.NoError(t, n.staging.Close())
			require.Nil(t, n.staging.Table(staging.Out))
			require.True(t, tablesOf(t).Take(device.DeviceToHost), "it may be measured again")
		})
	}
}

// CUDA's calls that free memory wait for the streams of the application, one of which may wait for a transfer.
func TestWhatAMeasurementHadIsFreedOnlyWhenTheDeviceIsClosed(t *testing.T) {
	simtest.UseCUDA(t, "")
	simtest.NoLeaks(t)
	n := unmeasured(t, "gpu-h200", measuring())
	n.measured()
	for dir := range staging.In + 1 {
		require.Eventually(t, func() bool { return !n.staging.Measures(dir) }, time.Minute, time.Millisecond)
	}
	freed := func() uint64 {
		calls := simtest.TakeReport(t).Calls
		return calls["cuMemFree_v2"] + calls["cuMemFreeHost"]
	}
	require.Zero(t, freed())
	require.NoError(t, n.staging.Close())
	require.GreaterOrEqual(t, freed(), uint64(4))
}

// CUDA loads kernels only when the streams of the application have come to rest, and one of them may wait for a transfer.
func TestAPreparedDeviceHasItsKernelsBeforeTheFirstJob(t *testing.T) {
	simtest.UseCUDA(t, "")
	simtest.NoLeaks(t)
	n := newSimulated(t, 0, options())
	defer func() { require.NoError(t, n.staging.Close()) }()
	loads := func() uint64 { return simtest.TakeReport(t).Calls["cuModuleLoadData"] }
	n.staging.Prepare()
	n.staging.Prepare()
	require.EqualValues(t, 1, loads())
	for dir := range staging.In + 1 {
		require.Zero(t, n.staging.Stats(dir).Jobs)
		n.blocks(dir, 4096, 4)
		require.EqualValues(t, 1, n.staging.Stats(dir).Kernels)
	}
	require.EqualValues(t, 1, loads())
}

func TestADeviceThatCannotBePreparedIsUsedAllTheSameAndThatIsSaidOnce(t *testing.T) {
	for fault, said := range map[string]int{
		"cuModuleLoadData:1+": 0, "cuStreamCreateWithPriority:1+": 1, "cuEventCreate:1": 1, "cuDevicePrimaryCtxRetain:1+": 1,
	} {
		t.Run(fault, func(t *testing.T) {
			simtest.UseCUDA(t, "")
			simtest.NoLeaks(t)
			o := options()
			warnings := observed(&o)
			n := newSimulated(t, 0, o)
			defer func() { require.NoError(t, n.staging.Close()) }()
			simtest.Faults(t, fault)
			n.staging.Prepare()
			simtest.Faults(t, "")
			require.Len(t, warnings.FilterMessageSnippet("is not prepared").All(), said)
			require.Zero(t, warnings.FilterMessageSnippet("job failed").Len())
			n.blocks(staging.Out, 4096, 4)
		})
	}
}

func TestPreparingADeviceMeasuresIt(t *testing.T) {
	for _, cost := range []string{"npu-slow-within", "gpu-h200"} {
		t.Run(cost, func(t *testing.T) {
			if cost == "gpu-h200" {
				simtest.UseCUDA(t, "")
			}
			simtest.NoLeaks(t)
			n := unmeasured(t, cost, measuring())
			n.staging.PrepareSoon()
			for dir := range staging.In + 1 {
				require.Eventually(t, func() bool { return n.staging.Table(dir) != nil }, time.Minute, time.Millisecond)
				require.Zero(t, n.staging.Stats(dir).Jobs)
			}
		})
	}
}

func TestClosingADeviceThatIsBeingPreparedLeavesNothing(t *testing.T) {
	for _, cost := range []string{"0", "d2h=25/5000,h2d=25/5000"} { // a table takes seconds then
		t.Run(cost, func(t *testing.T) {
			simtest.UseCUDA(t, "")
			simtest.NoLeaks(t)
			o := measuring()
			warnings := observed(&o)
			n := unmeasured(t, cost, o)
			for range 20 {
				other := newSimulated(t, 0, o)
				other.staging.PrepareSoon()
				require.NoError(t, other.staging.Close())
				other.staging.Prepare()
			}
			n.staging.Prepare()
			require.Zero(t, warnings.Len())
		})
	}
}

func TestAMeasurementThatHangsDisturbsNoJobAndEndsWithTheDevice(t *testing.T) {
	simtest.NoLeaks(t)
	o := measuring()
	warnings := observed(&o)
	n := unmeasured(t, "0", o)
	for hangs := false; !hangs; {
		simtest.Cost(t, "d2h=25/2000") // so that there is time to have it hang
		tablesOf(t).Forget()
		require.True(t, tablesOf(t).Take(device.HostToDevice), "only one direction is measured")
		n.blocks(staging.Out, 4096, 4)
		simtest.Faults(t, "exec:1=hang")
		require.Eventually(t, func() bool {
			hangs = simtest.TakeReport(t).Faults > 0
			return hangs || n.staging.Table(staging.Out) != nil
		}, time.Minute, time.Millisecond)
	}
	simtest.Cost(t, "0")
	require.Eventually(t, func() bool { return warnings.FilterMessageSnippet("could not be measured").Len() == 1 }, time.Minute, time.Millisecond)
	for dir := range staging.In + 1 {
		n.blocks(dir, 4096, 60)
	}
	simtest.ReleaseHangs(t)
	require.NoError(t, n.staging.Close())
}

// observed has what staging logs kept.
func observed(o *staging.Options) *observer.ObservedLogs {
	core, logs := observer.New(zap.WarnLevel)
	o.Log = zap.New(core)
	return logs
}

func TestRandomJobsWhileTheDeviceIsMeasured(t *testing.T) {
	onReleases(t, func(t *testing.T, r release) {
		simtest.NoLeaks(t)
		for seed := range uint64(3) {
			simtest.Seed(t, seed)
			n := unmeasured(t, "", measuring())
			random := rand.New(rand.NewPCG(seed, 3))
			s := n.stretch(1 << 20)
			for range 30 {
				for dir := range staging.In + 1 {
					require.NoError(t, n.transfer(random, dir, s), "seed %d", seed)
				}
			}
			s.check(n)
		}
	})
}
