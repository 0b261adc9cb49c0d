// Package staging moves bytes between device memory and page-locked blocks of host memory, from which and into which
// the network sends and receives. The memory for that is limited, allocated when it is needed, and shared fairly.
//
//   - A Device is the staging of one device: one copier for each direction.
//   - A copier (copier.go) has two OS threads bound to the device and a stream; it does jobs, and makes the blocks.
//   - A pool (pool.go) has the blocks of a copier. Parts of them are leased to accounts (account.go).
//   - A planner (plan.go) decides how the moves of a job are copied.
//   - Bytes may also go from device to device, past the blocks (direct.go).
package staging

import (
	"errors"
	"time"

	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// Options bound and tune the staging of one device.
type Options struct {
	BlockSize   uint64        // bytes of a staging block: a multiple of Granule
	PoolSize    uint64        // bytes of all blocks of the device, both directions together; each direction has one block at least
	GatherBelow uint64        // moves of fewer bytes may be gathered; 0: each move is copied by itself
	Copying     Copying       // how moves are copied
	MeasureTime time.Duration // for measuring how moves are copied fastest, in one direction; 0 is a quarter of a second
	Timeout     time.Duration // for the copies of one job, more than 0; after that the device counts as stuck
	Log         *zap.Logger

	// Hold keeps memory of devices from being taken back until release is called: a copy that was given up may still read it, or
	// write to it. why is for errors, and says which. Hold is nil where nobody takes memory back.
	Hold func(memory []Range, why string) (release func())
}

// Range is memory of a device.
type Range struct {
	Addr   uintptr
	Length uint64
}

// Granule is the unit in which blocks are leased, in bytes.
const Granule = 64 << 10

// Direction is the direction in which bytes pass through the blocks.
type Direction int

const (
	Out    Direction = iota // from the device to the network
	In                      // from the network to the device
	Direct                  // from device memory to the device, past the blocks: see direct.go
)

func (d Direction) String() string { return [...]string{"out", "in", "direct"}[d] }

// kind is that of the copies between the device and the blocks.
func (d Direction) kind() device.Kind {
	return [...]device.Kind{device.DeviceToHost, device.HostToDevice, device.WithinDevice}[d]
}

// Role is the side of a transfer that blocks are leased for. Neither role can take all blocks of a direction: two engines whose
// initiators wait for each other's targets would wait for ever.
type Role int

const (
	Initiator Role = iota
	Target
)

// ErrClosed is why leases and jobs fail after the staging of a device was closed.
var ErrClosed = errors.New("the staging of the device is closed")

func closedError(name string) error { return status.Errorf(status.Context, "%s: %w", name, ErrClosed) }

// Device is the staging of one device. Its methods may be called from any goroutine.
type Device struct {
	name      string
	options   Options
	alignment uint64
	copiers   [3]*copier // by direction
	late      lateCopies
	preparation
	peers peers
}

// New returns the staging of a device. Threads, streams and blocks are made when they are first needed. name is for logs
// and errors: "npu:1".
func New(d device.Device, name string, o Options) *Device {
	o.BlockSize = max(roundUp(o.BlockSize, Granule), Granule)
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Hold == nil {
		o.Hold = func([]Range, string) func() { return func() {} }
	}
	s := &Device{name: name, options: o, alignment: uint64(d.Traits().Alignment), preparation: newPreparation()}
	s.late.hold = o.Hold
	for dir := range s.copiers {
		s.copiers[dir] = newCopier(d, name, Direction(dir), o)
		s.copiers[dir].late = &s.late
	}
	return s
}

// Name is as given to New.
func (d *Device) Name() string { return d.name }

// BlockSize is the most that one lease holds, in bytes.
func (d *Device) BlockSize() uint64 { return d.options.BlockSize }

// Copying is who chooses how blocks are copied. has are the ways of the device, as far as it is known by now, and prefer is the
// one that is used where nothing was measured.
func (d *Device) Copying() (who Copying, has device.Ways, prefer device.Way) {
	traits := d.copiers[Out].device.Traits()
	return d.options.Copying, traits.Ways, newWays(Out, traits, d.options).prefer
}

// CopiesOneByOne reports whether each block costs the device a copy of its own, as far as that is known by now: it does not when a
// kernel or one call copies many.
func (d *Device) CopiesOneByOne() bool {
	_, _, prefer := d.Copying()
	return prefer == device.Single || prefer == device.Gather
}

// MostRuns is how many runs of strided moves a job should have at most. Its copies should not take much memory, nor the device for
// long: others wait behind it. Strided copies take less than those of runs that each cost the device a copy of its own. ordered is
// whether the runs may overlap, so that they are copied one after the other.
func (d *Device) MostRuns(ordered bool) uint64 {
	if ordered || d.CopiesOneByOne() {
		return 4096
	}
	return 65536
}

// Table is what was measured on the device in a direction, by this engine or another one of the process; nil if nothing was.
func (d *Device) Table(dir Direction) *device.Table {
	if tables := d.copiers[dir].tables; tables != nil {
		return tables.Of(dir.kind())
	}
	return nil
}

// Close waits for the jobs that were started, and frees everything on the device. Further leases fail. Outstanding leases may be
// released before or after, but their memory is freed when Close returns. If a job gets stuck, jobs that the device has not begun
// fail: Close takes little longer than the time limit of one job then. The error says what could not be freed.
func (d *Device) Close() error {
	for _, c := range d.copiers {
		c.close()
	}
	var errs []error
	for _, c := range d.copiers {
		errs = append(errs, c.wait())
	}
	return errors.Join(errs...)
}

// EndLeasing makes further leases fail, and returns how many bytes are still leased.
func (d *Device) EndLeasing() (leased uint64) {
	for _, c := range d.copiers {
		c.pool.close()
		leased += c.pool.leased()
	}
	return leased
}

// CloseWithin is Close with a limit. ended is false when the time is over: closing goes on in the background, and another call
// waits for it again.
func (d *Device) CloseWithin(limit time.Duration) (ended bool, err error) {
	for _, c := range d.copiers {
		c.close()
	}
	over := time.NewTimer(limit)
	defer over.Stop()
	var errs []error
	for _, c := range d.copiers {
		select {
		case <-c.ended:
			errs = append(errs, c.err)
		case <-over.C:
			return false, nil
		}
	}
	return true, errors.Join(errs...)
}

// Start starts a job, and does not block. j.Done is called once, on a goroutine of the device. It must not block, and may call
// everything of this package except Device.Close. Until then the job, its moves and its memory belong to the device. Jobs of a
// direction are done in the order in which they are started.
func (d *Device) Start(dir Direction, j *Job) { d.copiers[dir].start(j) }

// Expect says that a job is about to be started in a direction, in less time than it takes to wake a thread, or not much more. It
// does not block.
func (d *Device) Expect(dir Direction) { d.copiers[dir].expect() }

// Job is a set of moves between device memory and leased blocks.
type Job struct {
	Moves []Move

	// Done is called at the end of the job. err is nil when every byte is at its destination. Otherwise any of the bytes may be
	// missing, but no copy touches memory any more. There is one exception: if a device neither finishes a copy in time nor lets
	// its stream be closed, it is not known whether the copy will ever be made. The error says so. The blocks are not used again,
	// and device memory that may still be read or written is held: see Options.Hold.
	Done func(err error)

	// After is called once after Done, on the same goroutine and by the same rules: after the Done of all jobs that were found to
	// have ended at the same time. It may use what several of them have brought together. It is nil for jobs that need no such call.
	After func()

	// Again says that the job copies a part of what was refused before, which was logged: it is not logged where it is refused, too.
	Again bool

	prepares bool      // see prepare.go
	from     *Device   // of a direct job, the device that the bytes come from, if that is another one
	peers    []*Device // of a job that prepares direct copies
}

// copiesMany reports whether the job has several ranges of device memory.
func (j *Job) copiesMany() bool {
	return len(j.Moves) > 1 || len(j.Moves) == 1 && j.Moves[0].Runs != nil
}

// end calls Done, and returns the calls that are to follow: those given, and that of After.
func (j *Job) end(err error, after []func()) []func() {
	if j.After != nil {
		after = append(after, j.After)
	}
	j.Done(err) // from here on the job belongs to its owner
	return after
}

func callAll(after []func()) {
	for _, f := range after {
		f()
	}
}

// Move is one range of bytes of a job, or several of them on the device that lie together in the lease: a strided move. All moves of
// a job are in one lease. Ranges that overlap are written in the order of the moves.
type Move struct {
	Device uintptr // address in device memory, if Runs is nil
	Block  uintptr // address in a leased block; see Place
	Length uint64  // bytes

	// Runs is where the bytes of a strided move lie in device memory: they are bytes Skip to Skip + Length of its stream. It belongs
	// to the job until its end.
	Runs *hostmem.Strided
	Skip uint64
}

// Place returns the offset in a lease at which the next move should begin, so that moves can be gathered or scattered together. end
// is the offset at which the last move ended. Bytes of the lease that Place skips may be overwritten by a job with moves on both
// sides of them, or right after them.
func (d *Device) Place(end uint64, addr uintptr, length uint64) uint64 {
	return place(end, addr, length, d.options.GatherBelow, d.alignment)
}

// Account opens an account for a peer. After TryLease has returned no lease, ready is called, on a goroutine of its own, when
// TryLease should be called again. It may call everything of this package, and take locks that are held elsewhere while this
// package is called. It is nil for an account that is used with Lease.
func (d *Device) Account(dir Direction, role Role, ready func()) *Account {
	return newAccount(d.copiers[dir].pool, role, ready)
}

func roundUp(n, unit uint64) uint64 { return (n + unit - 1) / unit * unit }
