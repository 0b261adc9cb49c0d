package core

import (
	"context"
	"sync"

	"kvferry/core/staging"
)

// place is an address in host memory, or on a device.
type place struct {
	addr uintptr
	on   *staging.Device // nil for host memory
}

// localCopy is one copy between two places of this process: by the device that the bytes go to, or through a leased block on the
// side of each device, or within host memory.
type localCopy struct {
	dst, src place
	direct   bool           // by the device: both places are device memory
	in, out  *staging.Lease // nil where that side is host memory
}

// Between two steps an abort is seen. A device copies a step of directStep bytes in less than some milliseconds.
const (
	hostStep   = 4 << 20
	directStep = 32 << 20
)

// maxStep is the most that copyStep takes, in bytes.
func (c *localCopy) maxStep() uint64 {
	if c.direct {
		return directStep
	}
	step := uint64(hostStep)
	for _, lease := range []*staging.Lease{c.in, c.out} {
		if lease != nil {
			step = min(step, lease.Length)
		}
	}
	return step
}

// copyStep copies length bytes that begin at an offset on both sides.
func (c *localCopy) copyStep(offset uintptr, length uint64) error {
	dst, src := c.dst.addr+offset, c.src.addr+offset
	if c.direct {
		return copyDirectly(c.dst.on, c.src.on, []staging.Move{{Device: dst, Block: src, Length: length}})
	}
	if c.out != nil {
		move := staging.Move{Device: src, Block: c.out.Addr, Length: length}
		if err := await(c.src.on, staging.Out, move); err != nil {
			return err
		}
		src = c.out.Addr
	}
	if c.in == nil {
		return CopyMemory(dst, src, length)
	}
	if err := CopyMemory(c.in.Addr, src, length); err != nil {
		return err
	}
	return await(c.dst.on, staging.In, staging.Move{Device: dst, Block: c.in.Addr, Length: length})
}

// await starts a job of one move, and waits for its end.
func await(on *staging.Device, dir staging.Direction, move staging.Move) error {
	done := make(chan error, 1)
	on.Start(dir, &staging.Job{Moves: []staging.Move{move}, Done: func(err error) { done <- err }})
	return <-done
}

// isDirect is the one place where it is decided whether bytes go from device to device: both ends are device memory, and the device
// that they go to takes them so. Other bytes pass through the host.
func isDirect(dst, src place, length uint64) bool {
	return dst.on != nil && src.on != nil && dst.on.TakesDirect(src.on, dst.addr, src.addr, length)
}

// copyDirectly has a device copy from memory of a device, itself or another, and waits for the end. After an error of
// staging.IsRefused the bytes are to pass through the host.
func copyDirectly(dst, src *staging.Device, moves []staging.Move) error {
	done := make(chan error, 1)
	dst.StartFrom(src, &staging.Job{Moves: moves, Done: func(err error) { done <- err }})
	return <-done
}

func (c *localCopy) release() {
	for _, lease := range []*staging.Lease{c.in, c.out} {
		if lease != nil {
			lease.Release()
		}
	}
}

// localLeases leases staging blocks for copies within this process.
type localLeases struct {
	ctx context.Context // ends the waiting

	mu       sync.Mutex
	accounts map[localAccount]*staging.Account
}

type localAccount struct {
	device    *staging.Device
	direction staging.Direction
}

// open chooses how a copy of length bytes is made, and leases the blocks that it needs. The caller releases them.
func (l *localLeases) open(dst, src place, length uint64) (localCopy, error) {
	c := localCopy{dst: dst, src: src, direct: isDirect(dst, src, length)}
	if c.direct {
		return c, nil
	}
	return c, l.stage(&c, length)
}

// stage leases the blocks for a copy that is not direct, or not any more.
func (l *localLeases) stage(c *localCopy, length uint64) (err error) {
	c.direct = false
	if c.src.on != nil {
		c.out, err = l.lease(c.src.on, staging.Out, length)
	}
	if err == nil && c.dst.on != nil {
		c.in, err = l.lease(c.dst.on, staging.In, length)
	}
	if err != nil {
		c.release()
	}
	return err
}

func (l *localLeases) lease(on *staging.Device, dir staging.Direction, length uint64) (*staging.Lease, error) {
	return l.account(localAccount{on, dir}).Lease(l.ctx, min(length, on.BlockSize()))
}

func (l *localLeases) account(key localAccount) *staging.Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	account := l.accounts[key]
	if account == nil {
		account = key.device.Account(key.direction, staging.Initiator, nil)
		l.accounts[key] = account
	}
	return account
}

func (l *localLeases) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, account := range l.accounts {
		account.Close()
	}
	clear(l.accounts)
}
