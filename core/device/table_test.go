package device_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"kvferry/core/device"

	"github.com/stretchr/testify/require"
)

var all = device.WaysOf(device.Single, device.Batch, device.Gather, device.Kernel, device.Matrix)

// randomTable has two times for each of some ways and lengths.
func randomTable(r *rand.Rand) *device.Table {
	t := new(device.Table)
	for i := range t.Rows {
		row := &t.Rows[i]
		row.Few = 1 + r.IntN(4)
		row.Many = row.Few + 1 + r.IntN(100)
		for w := range device.WayCount {
			if r.IntN(4) > 0 {
				row.Measured |= device.WaysOf(w)
				few := time.Duration(r.IntN(100_000))
				row.Times[w] = device.Times{Few: few, Many: few + time.Duration(r.IntN(1_000_000))}
			}
		}
	}
	return t
}

// onRandomTables calls a function with tables, blocks and what a device has.
func onRandomTables(t *testing.T, test func(table *device.Table, length uint64, blocks int, has device.Ways, prefer device.Way)) {
	t.Helper()
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		has := device.WaysOf(device.Single) | device.Ways(r.IntN(1<<device.WayCount))
		prefer := device.Way(r.IntN(int(device.WayCount)))
		if !has.Has(prefer) {
			prefer = device.Single
		}
		test(randomTable(r), 1+r.Uint64N(4<<20), 2+r.IntN(500), has, prefer)
	}
}

func TestTheFastestWayIsOneThatTheDeviceHas(t *testing.T) {
	onRandomTables(t, func(table *device.Table, length uint64, blocks int, has device.Ways, prefer device.Way) {
		require.True(t, has.Has(table.Fastest(length, blocks, has, prefer)))
	})
}

func TestNoWayThatWasMeasuredIsClearlyFasterThanTheFastest(t *testing.T) {
	chosen := map[device.Way]int{}
	onRandomTables(t, func(table *device.Table, length uint64, blocks int, has device.Ways, prefer device.Way) {
		row := &table.Rows[device.RowOf(length)]
		fastest := table.Fastest(length, blocks, has, prefer)
		chosen[fastest]++
		if !row.Measured.Has(prefer) {
			require.Equal(t, prefer, fastest, "there is nothing to compare with")
			return
		}
		require.True(t, row.Measured.Has(fastest))
		for w := range device.WayCount {
			if !has.Has(w) || !row.Measured.Has(w) {
				continue
			}
			takes := row.Estimate(w, blocks)
			if w == device.Kernel && prefer != device.Kernel {
				takes += takes / 4
			}
			require.LessOrEqual(t, row.Estimate(fastest, blocks)*15/16, takes+1)
		}
	})
	require.Len(t, chosen, int(device.WayCount), "the test has each way chosen")
}

func TestTheDefaultIsKeptWhereNothingIsClearlyFaster(t *testing.T) {
	onRandomTables(t, func(table *device.Table, length uint64, blocks int, has device.Ways, prefer device.Way) {
		for i := range table.Rows {
			row := &table.Rows[i]
			for w := range row.Times {
				row.Times[w] = device.Times{Few: 960, Many: 9600}
			}
			row.Times[prefer] = device.Times{Few: 1000, Many: 10000}
		}
		require.Equal(t, prefer, table.Fastest(length, blocks, has, prefer))
	})
	nothing := new(device.Table)
	require.Equal(t, device.Gather, nothing.Fastest(4096, 10, all, device.Gather))
}

func TestASlowerClockChoosesTheSameWay(t *testing.T) {
	onRandomTables(t, func(table *device.Table, length uint64, blocks int, has device.Ways, prefer device.Way) {
		row := &table.Rows[device.RowOf(length)]
		span := time.Duration(row.Many - row.Few)
		for w := range row.Times { // no remainders: estimates are exact
			row.Times[w].Few *= span * 16
			row.Times[w].Many *= span * 16
		}
		before := table.Fastest(length, blocks, has, prefer)
		for w := range row.Times {
			row.Times[w].Few *= 3
			row.Times[w].Many *= 3
		}
		require.Equal(t, before, table.Fastest(length, blocks, has, prefer))
	})
}

func TestAWayThatBecomesFasterIsChosenAllTheMore(t *testing.T) {
	onRandomTables(t, func(table *device.Table, length uint64, blocks int, has device.Ways, prefer device.Way) {
		fastest := table.Fastest(length, blocks, has, prefer)
		times := &table.Rows[device.RowOf(length)].Times[fastest]
		saved := times.Few / 2
		times.Few, times.Many = times.Few-saved, times.Many-saved
		require.Equal(t, fastest, table.Fastest(length, blocks, has, prefer))
	})
}

func TestASingleBlockIsCopiedByItself(t *testing.T) {
	onRandomTables(t, func(table *device.Table, length uint64, _ int, has device.Ways, prefer device.Way) {
		require.Equal(t, device.Single, table.Fastest(length, 1, has, prefer))
	})
}

func TestTheNumberOfBlocksMayDecide(t *testing.T) {
	table := new(device.Table)
	table.Rows[0] = device.Row{Few: 2, Many: 64, Measured: all}
	table.Rows[0].Times = [device.WayCount]device.Times{
		device.Single: {Few: 20, Many: 640}, device.Batch: {Few: 60, Many: 310}, device.Gather: {Few: 130, Many: 131},
		device.Kernel: {Few: 500, Many: 500}, device.Matrix: {Few: 600, Many: 600},
	}
	for blocks, want := range map[int]device.Way{2: device.Single, 4: device.Single, 15: device.Batch, 64: device.Gather, 500: device.Gather} {
		require.Equal(t, want, table.Fastest(4096, blocks, all, device.Single), blocks)
	}
}

func TestLengthsHaveTheNearestRow(t *testing.T) {
	for length, row := range map[uint64]int{
		1: 0, 4 << 10: 0, 8 << 10: 0, 8<<10 + 1: 1, 16 << 10: 1, 32 << 10: 1, 48 << 10: 2, 64 << 10: 2, 200 << 10: 3, 1 << 20: 4, 1 << 40: 4,
	} {
		require.Equal(t, row, device.RowOf(length), length)
	}
}

func TestOneOfManyMeasures(t *testing.T) {
	tables := new(device.Tables)
	require.Nil(t, tables.Of(device.DeviceToHost))
	require.True(t, tables.Take(device.DeviceToHost))
	require.False(t, tables.Take(device.DeviceToHost))
	require.True(t, tables.Take(device.HostToDevice), "the other direction is another's")
	tables.Return(device.DeviceToHost)
	require.True(t, tables.Take(device.DeviceToHost))
	table := new(device.Table)
	tables.Keep(device.DeviceToHost, table)
	require.Same(t, table, tables.Of(device.DeviceToHost))
	require.False(t, tables.Take(device.DeviceToHost))
	tables.Keep(device.HostToDevice, nil)
	require.False(t, tables.Take(device.HostToDevice), "what failed is not tried again")
	tables.Forget()
	require.Nil(t, tables.Of(device.DeviceToHost))
	require.True(t, tables.Take(device.DeviceToHost))
}

func TestWaysAreParsedAsTheyAreShown(t *testing.T) {
	for w := range device.WayCount {
		parsed, err := device.ParseWay(w.String())
		require.NoError(t, err)
		require.Equal(t, w, parsed)
	}
	_, err := device.ParseWay("fast")
	require.EqualError(t, err, `"fast" is none of single, batch, gather, kernel, matrix`)
	require.Equal(t, "single, gather", device.WaysOf(device.Gather, device.Single).String())
}
