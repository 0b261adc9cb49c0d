package core

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"kvferry/core/address"
	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// devices are those on which an engine has registered memory, with their staging.
type devices struct {
	runtimes []device.Runtime
	options  staging.Options
	named    string // location of the device in the engine's name, or ""

	mu     sync.Mutex
	staged map[string]*staging.Device // by location
	closed bool
}

func newDevices(runtimes []device.Runtime, name address.Name, c *Config, log *zap.Logger) *devices {
	d := &devices{runtimes: runtimes, staged: map[string]*staging.Device{}, options: staging.Options{
		BlockSize:   uint64(c.StagingBlockSize),
		PoolSize:    uint64(c.StagingPoolSize),
		GatherBelow: uint64(c.StagingGatherBelow),
		Timeout:     c.ProgressTimeout,
		Log:         log,
	}}
	if name.Device != address.NoDevice {
		d.named = fmt.Sprintf("npu:%d", name.Device)
	}
	return d
}

// require opens a runtime, or says why it cannot be had.
func (d *devices) require(name string) error {
	for _, r := range d.runtimes {
		if r.Name() == name {
			return r.Require()
		}
	}
	return status.Errorf(status.NotSupportedTransport, "this engine was built without %q devices", name)
}

// at returns the staging of the device that a range lies on; nil for host memory. Each range is asked about once, when
// it is registered. Where neither a library nor the location tells, memory that the host cannot read is that of the device
// in the engine's name.
func (d *devices) at(r Range, location string) (*staging.Device, error) {
	on, err := d.locate(r, location)
	switch {
	case on != nil, err != nil, location != anywhere, hostmem.Readable(r.Addr):
		return on, err
	case d.named != "":
		return d.locate(r, d.named)
	}
	return nil, status.Errorf(status.InvalidArgument,
		"memory range %v: the host cannot read it, and nobody says on which device it is: name that as its location, as npu:0 or cuda:0", r)
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

// inTurn are all runtimes, the one first to which a location belongs: what the others say counts only where that knows
// of no such memory, as memory of one vendor's devices is nothing special to the libraries of others.
func (d *devices) inTurn(location string) []device.Runtime {
	order := slices.Clone(d.runtimes)
	first := slices.IndexFunc(order, func(r device.Runtime) bool { return strings.HasPrefix(location, r.Name()) })
	if first > 0 {
		order[0], order[first] = order[first], order[0]
	}
	return order
}

func (d *devices) open(runtime device.Runtime, index int) (*staging.Device, error) {
	name := fmt.Sprintf("%s:%d", runtime.Name(), index)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, closedError()
	}
	if on := d.staged[name]; on != nil {
		return on, nil
	}
	opened, err := runtime.Open(index)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	d.staged[name] = staging.New(opened, name, d.options)
	return d.staged[name], nil
}

// close ends the staging of every device. No job is started any more.
func (d *devices) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	var errs []error
	for _, on := range d.staged {
		errs = append(errs, on.Close())
	}
	return errors.Join(errs...)
}
