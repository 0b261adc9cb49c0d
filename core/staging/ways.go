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
	below  uint64        // bytes of a move from which on a kernel is not the default
	fixed  bool          // by Options.Copying
	table  *device.Table // nil if there is none

	// By row of the table, for the job that is being planned: the fastest way of short moves, of those that are too long to be
	// gathered, and of those that cannot be gathered for another reason.
	counts               [len(device.Lengths)]int
	short, long, instead [len(device.Lengths)]device.Way
}

func newWays(dir Direction, traits device.Traits, o Options) ways {
	w := ways{able: traits.Ways, prefer: traits.Default, below: kernelBelow}
	if dir == Direct {
		w.able, w.below = traits.Within|device.WaysOf(device.Single), kernelBelowDirect
	}
	if way, fixed := o.Copying.Fixed(); fixed {
		w.prefer, w.fixed = way, true
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
	length, able := device.Lengths[row], w.able.Without(device.Matrix)
	w.short[row] = w.table.Fastest(length, blocks, able, w.byDefault(length, true))
	able = able.Without(device.Gather)
	w.long[row] = w.table.Fastest(length, blocks, able, w.byDefault(length, false))
	w.instead[row] = w.table.Fastest(length, blocks, able, w.nearest(device.Batch))
}

// matrices reports whether any moves may be the rows of a matrix.
func (w *ways) matrices() bool {
	return w.table != nil || w.prefer == device.Matrix || w.prefer == device.Gather
}

// matrix reports whether so many moves of a length are copied fastest as the rows of one. short is as of has it, and gathers is whether
// they can be gathered. Where nothing was measured, they are rows only if they would be copied one by one.
func (w *ways) matrix(length uint64, count int, short, gathers bool) bool {
	switch {
	case w.prefer == device.Matrix:
		return true
	case w.table == nil:
		return short && !gathers && w.nearest(device.Batch) == device.Single
	case gathers:
		return w.table.Fastest(length, count, w.able, w.nearest(w.prefer)) == device.Matrix
	case short:
		return w.table.Fastest(length, count, w.able.Without(device.Gather), w.nearest(device.Batch)) == device.Matrix
	}
	return w.table.Fastest(length, count, w.able.Without(device.Gather), w.byDefault(length, false)) == device.Matrix
}

// of is the way of a move. short is whether it may be gathered.
func (w *ways) of(length uint64, short bool) device.Way {
	row := device.RowOf(length)
	switch {
	case w.table == nil:
		return w.byDefault(length, short)
	case short:
		return w.short[row]
	}
	return w.long[row]
}

// strides reports whether a kernel copies so many runs of a length fastest.
func (w *ways) strides(length uint64, runs int) bool {
	way := w.byDefault(length, true)
	if w.table != nil {
		way = w.table.Fastest(length, runs, w.able.Without(device.Matrix), way)
	}
	return way == device.Kernel
}

// kernelBelow is the length from which on a kernel is little faster than the device's copy engines, if at all, in bytes.
// These need no place on the device, and do not wait for the kernels of other programs.
const kernelBelow = 32 << 10

// kernelBelowDirect is that of direct moves. No bus limits these: on an H200 a kernel copied 64 blocks of 64 KiB in 45 us, and the copy
// engines in 320 to 500.
const kernelBelowDirect = 256 << 10

// byDefault is the way of a move if nothing was measured.
func (w *ways) byDefault(length uint64, short bool) device.Way {
	switch {
	case w.prefer == device.Gather && !short:
		return device.Single
	case w.prefer == device.Kernel && (!short || !w.fixed && length >= w.below):
		return w.nearest(device.Batch)
	}
	return w.nearest(w.prefer)
}

// otherwise is the way of a short move that cannot be gathered.
func (w *ways) otherwise(length uint64) device.Way {
	if w.table == nil {
		return w.nearest(device.Batch)
	}
	return w.instead[device.RowOf(length)]
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

// without calls copy as if the device lacked a way. Other ways may be lost meanwhile.
func (w *ways) without(way device.Way, copy func() error) error {
	has := w.able & device.WaysOf(way)
	defer func() { w.able |= has }()
	w.able = w.able.Without(way)
	return copy()
}
