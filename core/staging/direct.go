package staging

import (
	"errors"
	"fmt"
	"sync"

	"kvferry/core/device"

	"go.uber.org/zap"
)

// Direct copies: from device memory to device memory, past the host.
//
//  1. TakesDirect says whether a range may be copied so, as far as that is known by now.
//  2. StartFrom starts a job, on the device that the bytes go to. In its moves, Block is an address of the device that they come
//     from. It is planned and done as other jobs are, by a copier of its own (rule 9 of the planner).
//  3. Where that device refuses a copy, Landed says which moves can be made again: one of them may be bad, and the others good.
//  4. Where it refuses because it has no access to the memory of the other, the error is one of IsRefused. The bytes are to pass
//     through blocks then. When they have, Separate logs that once, and the pair is not tried again.

// peers are other devices, as direct copies know them.
type peers struct {
	mu       sync.Mutex
	apart    map[*Device]bool // whose memory this device has no access to
	prepared map[*Device]bool // PrepareDirect has prepared them, or does so now
	ready    chan struct{}    // closed when it has; nil before the first PrepareDirect
}

// TakesDirect reports whether bytes of a device, this one or another, may be copied to this one by StartFrom. Source and
// destination do not overlap then.
func (d *Device) TakesDirect(from *Device, dst, src uintptr, length uint64) bool {
	own := d.copiers[Direct].device
	traits := own.Traits()
	if !traits.AnyAddress && (dst|src)%traits.Alignment != 0 || overlaps(dst, src, length) {
		return false
	}
	if from == d {
		return true
	}
	peered, able := own.(device.Peered)
	return able && peered.MayAccess(from.copiers[Direct].device) && !d.isApart(from)
}

// MostDirect is how many moves a job should have at most whose bytes come from a device: see MostRuns. From another device they are
// copied one by one, and within some devices, too, whatever the way of blocks is.
func (d *Device) MostDirect(from *Device) uint64 {
	return d.MostRuns(from != d || d.copiers[Direct].device.Traits().Within == 0)
}

func overlaps(a, b uintptr, length uint64) bool {
	return a < b+uintptr(length) && b < a+uintptr(length)
}

func (d *Device) isApart(from *Device) bool {
	d.peers.mu.Lock()
	defer d.peers.mu.Unlock()
	return d.peers.apart[from]
}

// StartFrom starts a job whose bytes come from memory of a device, this one or another, and go to memory of this one. See Start; no
// move is strided or empty, and none overlaps with itself. Both devices' memory belongs to the job until its end.
func (d *Device) StartFrom(from *Device, j *Job) {
	if from != d {
		done := j.Done
		j.from = from
		j.Done = func(err error) {
			if err != nil {
				err = fmt.Errorf("copying from %s to %s: %w", from.name, d.name, err)
			}
			done(err)
		}
	}
	d.Start(Direct, j)
}

// refusal is why a copy of a job could not be queued.
type refusal struct {
	error
	landing int // moves of the job, from the first on, whose copies were all queued before
}

func (r *refusal) Unwrap() error { return r.error }

// Landed reports whether a job has failed because a copy of it was refused, and nothing of it can land any more. Then the first moves
// of a direct job have landed. All others have not, or can be made again: none of them reads what another one writes. If the stream
// did not come to rest, a late copy might overwrite what was copied again, and it is a failure like others.
func Landed(err error) (moves int, refused bool) {
	var r *refusal
	if !errors.As(err, &r) || errors.Is(err, errGivenUp) {
		return 0, false
	}
	return r.landing, true
}

// IsRefused reports whether a direct job has failed because the device refuses to access the memory of the other: see 4.
func IsRefused(err error) bool {
	_, refused := Landed(err)
	return refused && (errors.Is(err, device.ErrNoPeer) || errors.Is(err, device.ErrOutOfReach))
}

// Separate notes that the device has no access to the memory of another, if the error of a direct job says that. It is called when
// the bytes have passed through blocks: a copy may also be refused because its memory is bad.
func (d *Device) Separate(from *Device, err error) {
	if !errors.Is(err, device.ErrNoPeer) {
		return
	}
	d.peers.mu.Lock()
	known := d.peers.apart[from]
	if d.peers.apart == nil {
		d.peers.apart = map[*Device]bool{}
	}
	d.peers.apart[from] = true
	d.peers.mu.Unlock()
	if !known {
		d.options.Log.Warn("copies between these devices pass through the host", zap.String("from", from.name), zap.String("to", d.name),
			zap.Error(err))
	}
}

// copyTo queues copies from the device's memory on a stream of another one.
func (d *Device) copyTo(stream device.Stream, copies []device.Copy) (issued int, err error) {
	other, able := stream.(device.PeerStream)
	if !able {
		return 0, device.ErrNoPeer
	}
	return other.CopyFrom(d.copiers[Direct].device, copies)
}
