package core

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"kvferry/core/address"
	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/metrics"
	"kvferry/core/staging"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// devices are those on which an engine has registered memory, with their staging.
type devices struct {
	runtimes []device.Runtime
	options  staging.Options
	prepares bool   // a device is prepared when memory of it is registered
	named    string // location of the device in the engine's name, or ""

	mu     sync.Mutex
	staged map[string]*staging.Device // by location
	closed bool
}

func newDevices(runtimes []device.Runtime, name address.Name, memory *Registry, c *Config, log *zap.Logger) *devices {
	d := &devices{runtimes: runtimes, staged: map[string]*staging.Device{}, prepares: c.DevicePrepare, options: staging.Options{
		BlockSize:   uint64(c.StagingBlockSize),
		PoolSize:    uint64(c.StagingPoolSize),
		GatherBelow: uint64(c.StagingGatherBelow),
		Copying:     c.DeviceCopy,
		Timeout:     c.ProgressTimeout,
		Log:         log,
		Hold: func(held []staging.Range, why string) (release func()) {
			ranges := make([]Range, len(held))
			for i, r := range held {
				ranges[i] = Range{Addr: r.Addr, Length: r.Length}
			}
			return memory.HoldAll(ranges, why)
		},
	}}
	if name.Device != address.NoDevice {
		d.named = fmt.Sprintf("npu:%d", name.Device)
	}
	return d
}

// require opens the library of a runtime, or says why that is not possible.
func (d *devices) require(name string) error {
	for _, r := range d.runtimes {
		if r.Name() == name {
			return r.Require()
		}
	}
	return status.Errorf(status.NotSupportedTransport, "this engine was built without %q devices", name)
}

// pageLimit is how long the registration of a range waits for its first page: one that is swapped out comes within it.
const pageLimit = time.Second

// at returns the staging of the device that a range is on; nil for host memory. It is called once for each range, when the range
// is registered. If neither a library nor the location names a device, memory that the host cannot read counts as memory of the
// device in the engine's name.
func (d *devices) at(r Range, location string) (*staging.Device, error) {
	on, err := d.locate(r, location)
	switch {
	case on != nil, err != nil, location != anywhere, hostmem.IsHosts(r.Addr, pageLimit):
		return on, err
	case d.named != "":
		return d.locate(r, d.named)
	}
	return nil, status.Errorf(status.InvalidArgument,
		"memory range %v: the host cannot read it, and it is not known on which device it is: give its location, as npu:0 or cuda:0", r)
}

func (d *devices) locate(r Range, location string) (*staging.Device, error) {
	for _, runtime := range d.inTurn(location) {
		first, found, err := runtime.Locate(r.Addr, location)
		if err != nil {
			return nil, fmt.Errorf("memory range %v, location %q: %w", r, location, err)
		}
		last, foundLast, err := runtime.Locate(r.end()-1, location)
		switch {
		case err != nil:
			return nil, fmt.Errorf("memory range %v, location %q: %w", r, location, err)
		case found != foundLast || first != last:
			return nil, status.Errorf(status.InvalidArgument, "memory range %v begins and ends in memory of different kinds or devices", r)
		case found:
			return d.open(runtime, first)
		}
	}
	return nil, nil
}

// inTurn are all runtimes. The one that a location belongs to is first, and the others are asked only when it does not know the
// memory: other vendors' libraries take memory of its devices for host memory.
func (d *devices) inTurn(location string) []device.Runtime {
	order := slices.Clone(d.runtimes)
	first := slices.IndexFunc(order, func(r device.Runtime) bool { return strings.HasPrefix(location, r.Name()) })
	if first > 0 {
		order[0], order[first] = order[first], order[0]
	}
	return order
}

// open finds or makes the staging of a device. The library, which may hang, is not called under the lock: close takes it.
func (d *devices) open(runtime device.Runtime, index int) (*staging.Device, error) {
	name := fmt.Sprintf("%s:%d", runtime.Name(), index)
	if on, err := d.keep(name, nil); on != nil || err != nil {
		return on, err
	}
	opened, err := runtime.Open(index)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d.keep(name, staging.New(opened, name, d.options))
}

// keep returns the staging of a device. If there is none yet, made becomes it, unless that is nil.
func (d *devices) keep(name string, made *staging.Device) (*staging.Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, closedError()
	}
	on := d.staged[name]
	if on == nil && made != nil {
		on = made
		d.staged[name] = made
	}
	return on, nil
}

// describe says what the staging of each device does.
func (d *devices) describe() []metrics.Staging {
	all := []metrics.Staging{}
	d.mu.Lock()
	names, staged := slices.Sorted(maps.Keys(d.staged)), maps.Clone(d.staged)
	d.mu.Unlock()
	for _, name := range names {
		for dir := range staging.Direct + 1 {
			s := staged[name].Stats(dir)
			all = append(all, metrics.Staging{
				Device: name, Direction: dir.String(), Pool: uint64(s.Blocks) * staged[name].BlockSize(), Leased: s.Leased,
				Waits: s.Waits, Jobs: s.Jobs, Failed: s.Failed, Bytes: s.Bytes, Copying: s.Copying.Seconds(),
			})
		}
	}
	return all
}

// close ends the staging of every device, and waits for a limited time. No job is started any more. If transfers are stuck,
// devices with leased blocks stay open, since these transfers may use the blocks; close may be called again for them.
func (d *devices) close(limit time.Duration, stuck bool) error {
	all := d.shut()
	errs := make([]error, len(all))
	var closing sync.WaitGroup
	for i, on := range all {
		closing.Go(func() { errs[i] = closeDevice(on, limit, stuck) })
	}
	closing.Wait()
	return inOrder(errs...)
}

func closeDevice(on *staging.Device, limit time.Duration, stuck bool) error {
	if leased := on.EndLeasing(); leased > 0 && stuck {
		return status.Errorf(status.BatchBusy, "%d bytes of %s's staging blocks are %w", leased, on.Name(), ErrInUse)
	}
	ended, err := on.CloseWithin(limit)
	if !ended {
		return status.Errorf(status.BatchBusy, "%s is %w: a call of its library does not return, or a copy does not end", on.Name(), ErrInUse)
	}
	return err
}

// shut returns all devices. No further ones are opened.
func (d *devices) shut() []*staging.Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return slices.Collect(maps.Values(d.staged))
}

// DeviceCopies says how the blocks of transfers are copied between a device and staging blocks, in one direction.
type DeviceCopies struct {
	Device    string // "npu:1"
	Direction staging.Direction
	Setting   staging.Copying
	Ways      device.Ways   // that the device may have
	Default   device.Way    // where nothing was measured, or a way is set
	Table     *device.Table // what was measured; nil as long as nothing was
}

// DeviceCopies returns them for both directions of each device on which memory was registered so far, by name.
func (e *Engine) DeviceCopies() []DeviceCopies {
	d := e.devices
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []DeviceCopies
	for _, name := range slices.Sorted(maps.Keys(d.staged)) {
		for dir := range staging.In + 1 {
			all = append(all, copiesOf(d.staged[name], dir))
		}
	}
	return all
}

func copiesOf(on *staging.Device, dir staging.Direction) DeviceCopies {
	setting, has, prefer := on.Copying()
	return DeviceCopies{Device: on.Name(), Direction: dir, Setting: setting, Ways: has, Default: prefer, Table: on.Table(dir)}
}
