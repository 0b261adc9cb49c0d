package staging

import (
	"errors"

	"kvferry/core/device"
)

// ways chooses the way of each move of a job. The first of these that says something decides:
//
//  1. Options.Copying, if it names a way that the device has;
//  2. the device's table, if it was measured: moves count by the lengths that the table has rows for, and the fastest way for as
//     many blocks of that length is theirs;
//  3. the device's default.
type ways struct {
	able   device.Ways   // what the device has
	prefer device.Way    // one of them, unless it was lost
	table  *device.Table // nil if there is none

	// By row of the table, for the job that is being planned.
	counts          [len(device.Lengths)]int
	fastest, direct [len(device.Lengths)]device.Way // of all ways, and of all but Gather
}

func newWays(traits device.Traits, o Options) ways {
	w := ways{able: traits.Ways, prefer: traits.Default}
	if way, fixed := o.Copying.Fixed(); fixed {
		w.prefer = way
	}
	return w
}

// begin is called with all moves of a job, before their ways are asked for.
func (w *ways) begin(moves []planned) {
	if w.table == nil {
		return
	}
	clear(w.counts[:])
	for i := range moves {
		if moves[i].way != device.Matrix {
			w.counts[device.RowOf(moves[i].Length)]++
		}
	}
	for row, blocks := range w.counts {
		if blocks > 0 {
			w.choose(row, blocks)
		}
	}
}

func (w *ways) choose(row, blocks int) {
	length := device.Lengths[row]
	able := w.able.Without(device.Matrix)
	w.fastest[row] = w.table.Fastest(length, blocks, able, w.nearest(w.prefer))
	w.direct[row] = w.fastest[row]
	if w.fastest[row] == device.Gather {
		w.direct[row] = w.table.Fastest(length, blocks, able.Without(device.Gather), w.nearest(device.Batch))
	}
}

// matrices reports whether any moves may be the rows of a matrix.
func (w *ways) matrices() bool { return w.table != nil || w.prefer == device.Matrix }

// matrix reports whether so many moves of a length are copied fastest as the rows of one.
func (w *ways) matrix(length uint64, count int) bool {
	return w.prefer == device.Matrix || w.table.Fastest(length, count, w.able, w.nearest(w.prefer)) == device.Matrix
}

// of is the way of a move. small is whether it may be gathered.
func (w *ways) of(length uint64, small bool) device.Way {
	switch {
	case w.table != nil && small:
		return w.fastest[device.RowOf(length)]
	case w.table != nil:
		return w.direct[device.RowOf(length)]
	case w.prefer == device.Gather && !small:
		return device.Single
	case w.prefer == device.Kernel && !small:
		return w.nearest(device.Batch)
	}
	return w.nearest(w.prefer)
}

// instead is the way of a move that cannot be gathered.
func (w *ways) instead(length uint64) device.Way {
	if w.table != nil {
		return w.direct[device.RowOf(length)]
	}
	return w.nearest(device.Batch)
}

// nearest is a way, or the next simpler one that the device has.
func (w *ways) nearest(way device.Way) device.Way {
	switch {
	case w.able.Has(way) && way != device.Matrix:
		return way
	case w.able.Has(device.Batch):
		return device.Batch
	}
	return device.Single
}

// lose removes the way that the device has turned out to lack, by the error of a call. It returns false for other errors.
func (w *ways) lose(err error) bool {
	lost := device.Batch
	switch {
	case errors.Is(err, device.ErrNoBatches):
	case errors.Is(err, device.ErrNoKernel):
		lost = device.Kernel
	case errors.Is(err, device.ErrNoMatrix):
		lost = device.Matrix
	default:
		return false
	}
	had := w.able.Has(lost)
	w.able = w.able.Without(lost)
	return had
}
