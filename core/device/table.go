package device

import (
	"sync/atomic"
	"time"
)

// Lengths are those of the blocks that a Table has rows for, in bytes.
var Lengths = [...]uint64{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20}

// RowOf is the row of a Table for blocks of a length: the nearest one, by the ratio of the lengths.
func RowOf(length uint64) int {
	for i, l := range Lengths[1:] {
		if length <= l/2 {
			return i
		}
	}
	return len(Lengths) - 1
}

// Table is how long blocks take between a device and a staging block, in one direction, as measured by the device's clock. A
// table does not change once it is kept.
type Table struct {
	Rows [len(Lengths)]Row
}

// Row is how long blocks of one length take.
type Row struct {
	Few, Many int // numbers of blocks, Few < Many
	Measured  Ways
	Times     [WayCount]Times // of each way that was measured
}

// Times are of Few and of Many blocks.
type Times struct{ Few, Many time.Duration }

// better is how much of the time of the default way another one must save to be chosen: 1/better. So noise does not choose.
const better = 16

// kernelHandicap is how much longer a kernel counts as taking where it is not the default: 1/kernelHandicap. It takes places
// on the device from other kernels, and a measurement on an idle device does not see that it has to wait for those of others.
const kernelHandicap = 4

// Fastest is the fastest way for a number of blocks of a length, among those that the device has. It is prefer, one of them, where
// no other was measured to be clearly faster, see better and kernelHandicap, and where nothing was measured. A single block is
// copied by itself.
func (t *Table) Fastest(length uint64, blocks int, has Ways, prefer Way) Way {
	row := &t.Rows[RowOf(length)]
	if blocks < 2 {
		return Single
	}
	if !row.Measured.Has(prefer) {
		return prefer
	}
	best := prefer
	least := row.Estimate(prefer, blocks)
	least -= least / better
	for w := range WayCount {
		if w == prefer || !has.Has(w) || !row.Measured.Has(w) {
			continue
		}
		takes := row.Estimate(w, blocks)
		if w == Kernel {
			takes += takes / kernelHandicap
		}
		if takes < least {
			best, least = w, takes
		}
	}
	return best
}

// Estimate is how long a number of blocks takes in a way that was measured, in proportion to the two measured numbers.
func (r *Row) Estimate(w Way, blocks int) time.Duration {
	times := r.Times[w]
	further := max(0, times.Many-times.Few)
	return max(0, times.Few+further*time.Duration(blocks-r.Few)/time.Duration(r.Many-r.Few))
}

// Timer is a Device whose clock can measure, and which keeps what was measured.
type Timer interface {
	Device
	// NewTimedEvent returns an event that Elapsed can take.
	NewTimedEvent() (Event, error)
	// Elapsed is the time between two timed events that have happened, and were recorded in one stream, in that order.
	Elapsed(from, to Event) (time.Duration, error)
	// Tables are those of the device, in the whole process. They are always the same.
	Tables() *Tables
}

// Tables are those of one device. Their owner is whatever stands for the device in the process: the vendor's opened library.
// Methods may be called from any goroutine.
type Tables struct {
	tables [2]atomic.Pointer[Table] // by Kind, HostToDevice and DeviceToHost
	taken  [2]atomic.Bool           // somebody measures, has measured or has failed to measure
}

// Of returns the table of a direction; nil as long as nothing was measured.
func (t *Tables) Of(kind Kind) *Table { return t.tables[kind].Load() }

// Take returns true to one caller, who is to measure, and then to call Keep, or Return if it could not finish.
func (t *Tables) Take(kind Kind) bool {
	return !t.taken[kind].Load() && t.taken[kind].CompareAndSwap(false, true)
}

// Keep keeps what was measured, for the life of the process. Without a table nobody will measure again.
func (t *Tables) Keep(kind Kind, table *Table) { t.tables[kind].Store(table) }

// Return lets another one measure.
func (t *Tables) Return(kind Kind) { t.taken[kind].Store(false) }

// Forget lets the next user measure again. It must not be called while somebody measures.
func (t *Tables) Forget() {
	for kind := range t.tables {
		t.tables[kind].Store(nil)
		t.taken[kind].Store(false)
	}
}
