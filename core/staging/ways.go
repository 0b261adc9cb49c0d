package staging

import (
	"errors"

	"kvferry/core/device"
)

// ways chooses the way of each move of a job: the one that the setting names, or the device's default.
type ways struct {
	able   device.Ways // what the device has
	prefer device.Way  // one of them
}

func newWays(traits device.Traits, o Options) ways {
	w := ways{able: traits.Ways, prefer: traits.Default}
	if way, fixed := o.Copying.Fixed(); fixed {
		w.prefer = way
	}
	return w
}

// begin is called with all moves of a job, before their ways are asked for.
func (w *ways) begin([]planned) {}

// of is the way of a move. small is whether it may be gathered.
func (w *ways) of(_ uint64, small bool) device.Way {
	if w.prefer == device.Gather && !small {
		return device.Single
	}
	return w.nearest(w.prefer)
}

// instead is the way of a move that cannot be gathered.
func (w *ways) instead(uint64) device.Way { return w.nearest(device.Batch) }

// nearest is the way, or the next simpler one that the device has.
func (w *ways) nearest(way device.Way) device.Way {
	switch {
	case w.able.Has(way):
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
	default:
		return false
	}
	had := w.able.Has(lost)
	w.able = w.able.Without(lost)
	return had
}
