package staging

import (
	"context"
	"fmt"
	"time"

	"kvferry/core/status"
)

// Account is what one peer holds of the blocks of one direction, in one role. The more others hold, the less it may: see
// pool. Its methods may be called from any goroutine.
type Account struct {
	pool  *pool
	role  Role
	ready func()

	turn  chan struct{} // held by the call of Lease that waits
	nudge chan struct{} // what ready is for Lease

	// What follows is guarded by the pool's lock.
	held    int       // granules, those of the offer included
	waiting bool      // TryLease has returned none, and ready was not called since
	want    int       // granules that are waited for
	offer   *Lease    // waits to be fetched by TryLease
	offered time.Time // when
	failure error     // why there is no offer: TryLease returns it
	closed  bool
}

func newAccount(p *pool, role Role, ready func()) *Account {
	a := &Account{pool: p, role: role, ready: ready}
	if ready == nil {
		a.turn, a.nudge = make(chan struct{}, 1), make(chan struct{}, 1)
		a.ready = func() {
			select {
			case a.nudge <- struct{}{}:
			default:
			}
		}
	}
	return a
}

// call has ready called, on a goroutine of its own, for who has brought this about may hold locks that ready takes. There
// is one at most for each time that the account was refused.
func (a *Account) call() {
	if a.nudge != nil {
		a.ready()
		return
	}
	go func() {
		a.pool.mu.Lock()
		closed := a.closed
		a.pool.mu.Unlock()
		if !closed {
			a.ready()
		}
	}()
}

// TryLease returns a stretch of a block, of up to want bytes and at least one granule; nil when none is free for this
// account now: then ready will be called, once, and a lease is kept for the account for a tenth of a second at least.
// An error says why there will be none.
func (a *Account) TryLease(want uint64) (*Lease, error) {
	p := a.pool
	p.mu.Lock()
	defer p.unlock()
	n := int(roundUp(min(max(want, 1), p.blockSize), Granule) / Granule)
	switch {
	case a.closed || p.closed:
		return nil, closedError(p.name)
	case a.failure != nil:
		err := a.failure
		a.failure = nil
		return nil, err
	case a.offer != nil:
		return p.fetch(a, n), nil
	case p.exhausted != nil:
		return nil, p.exhausted
	}
	l := p.grant(a, n)
	if l == nil {
		p.wait(a, n)
		return nil, nil
	}
	p.leave(a)
	return l, nil
}

// Lease waits for a lease of an account whose ready is nil.
func (a *Account) Lease(ctx context.Context, want uint64) (*Lease, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return nil, a.gaveUp(ctx)
	}
	for {
		l, err := a.TryLease(want)
		if l != nil || err != nil {
			return l, err
		}
		select {
		case <-a.nudge:
		case <-ctx.Done():
			a.withdraw()
			return nil, a.gaveUp(ctx)
		}
	}
}

func (a *Account) gaveUp(ctx context.Context) error {
	return status.Errorf(status.Context, "%s: waiting for a staging block: %w", a.pool.name, context.Cause(ctx))
}

// withdraw ends the waiting for a lease.
func (a *Account) withdraw() {
	a.pool.mu.Lock()
	defer a.pool.unlock()
	a.failure = nil
	a.pool.leave(a)
	a.pool.revoke(a)
}

// Close ends an account. ready is not called any more once Close has returned, but a call that was about to be made may
// still be under way. Leases that the account has are released before or after.
func (a *Account) Close() {
	a.pool.mu.Lock()
	defer a.pool.unlock()
	a.closed = true
	a.pool.leave(a)
	a.pool.revoke(a)
	if a.nudge != nil {
		a.ready() // for a call of Lease
	}
}

// Lease is a stretch of a staging block: a whole number of granules, aligned as the device's runtime aligns page-locked
// memory.
type Lease struct {
	Addr   uintptr
	Length uint64 // bytes

	account *Account
	block   *block // nil once it is given back
	first   int    // granule in the block
	count   int
}

// Release gives it back, from any goroutine. The memory is not touched any more by whoever had it. A second call does
// nothing.
func (l *Lease) Release() {
	p := l.account.pool
	p.mu.Lock()
	defer p.unlock()
	if l.block != nil {
		p.release(l)
		p.serve()
	}
}

func (l *Lease) String() string { return fmt.Sprintf("%#x+%d", l.Addr, l.Length) }
