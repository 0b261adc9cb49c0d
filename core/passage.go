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

// passage is the way between two places of this process: straight, or through a leased block on the side of each device.
type passage struct {
	dst, src place
	in, out  *staging.Lease // nil where that side is host memory
}

// step is the most that copy takes, in bytes.
func (p *passage) step() uint64 {
	step := uint64(4 << 20) // an abort is seen soon
	for _, lease := range []*staging.Lease{p.in, p.out} {
		if lease != nil {
			step = min(step, lease.Length)
		}
	}
	return step
}

// copy copies length bytes that begin at an offset on both sides.
func (p *passage) copy(offset uintptr, length uint64) error {
	dst, src := p.dst.addr+offset, p.src.addr+offset
	if p.out != nil {
		move := staging.Move{Device: src, Block: p.out.Addr, Length: length}
		if err := await(p.src.on, staging.Out, move); err != nil {
			return err
		}
		src = p.out.Addr
	}
	if p.in == nil {
		return CopyMemory(dst, src, length)
	}
	if err := CopyMemory(p.in.Addr, src, length); err != nil {
		return err
	}
	return await(p.dst.on, staging.In, staging.Move{Device: dst, Block: p.in.Addr, Length: length})
}

// await has one move done.
func await(on *staging.Device, dir staging.Direction, move staging.Move) error {
	done := make(chan error, 1)
	on.Start(dir, &staging.Job{Moves: []staging.Move{move}, Done: func(err error) { done <- err }})
	return <-done
}

func (p *passage) close() {
	for _, lease := range []*staging.Lease{p.in, p.out} {
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

// open leases what a passage for length bytes needs.
func (l *localLeases) open(dst, src place, length uint64) (p passage, err error) {
	p = passage{dst: dst, src: src}
	if src.on != nil {
		p.out, err = l.lease(src.on, staging.Out, length)
	}
	if err == nil && dst.on != nil {
		p.in, err = l.lease(dst.on, staging.In, length)
	}
	if err != nil {
		p.close()
	}
	return p, err
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
