package staging

import (
	"context"
	"fmt"
	"time"

	"kvferry/core/status"
)

// Account is the share of one peer in the blocks of one direction, in one role. The more the others hold, the less it may hold:
// see pool. Its methods may be called from any goroutine.
type Account struct {
	pool  *pool
	role  Role
	ready func()

	// For Lease; nil if ready is set.
	turn chan struct{} // held by the call of Lease that waits
	wake chan struct{} // has an element when that call should try again

	// Guarded by the pool's lock.
	held    int       // granules, those of the offer included
	waiting bool      // TryLease has returned no lease, and ready was not called since
	want    int       // granules that it waits for
	offer   *Lease    // a lease that TryLease will return
	offered time.Time // when the offer was made
	failure error     // why there is no offer; TryLease will return it
	closed  bool
}

func newAccount(p *pool, role Role, ready func()) *Account {
	a := &Account{pool: p, role: role, ready: ready}
	if ready == nil {
		a.turn, a.wake = make(chan struct{}, 1), make(chan struct{}, 1)
		a.ready = func() {
			select {
			case a.wake <- struct{}{}:
			default:
			}
		}
	}
	return a
}

// call starts a call of ready on a goroutine of its own: the caller may hold locks that ready takes. There is at most one call for
// each time that TryLease has returned no lease.
func (a *Account) call() {
	if a.wake != nil {
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

// TryLease returns a lease of up to want bytes, and of at least one granule. It returns nil if none is free for this account now.
// Then ready is called once when one is, and the lease is kept for the account for a tenth of a second at least. An error says why
// there will be no lease.
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
	p.stopWaiting(a)
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
		case <-a.wake:
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
	a.pool.stopWaiting(a)
	a.pool.revoke(a)
}

// IsWanted reports whether the account holds memory while others wait for some.
func (a *Account) IsWanted() bool {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	return a.held > 0 && len(a.pool.waiting) > 0
}

// Close ends an account. Once Close has returned no call of ready is started, but one may still be under way. Leases of the account
// may be released before or after.
func (a *Account) Close() {
	a.pool.mu.Lock()
	defer a.pool.unlock()
	a.closed = true
	a.pool.stopWaiting(a)
	a.pool.revoke(a)
	if a.wake != nil {
		a.ready() // for a call of Lease
	}
}

// Lease is a part of a staging block: a whole number of granules, aligned as the device's runtime aligns page-locked memory.
type Lease struct {
	Addr   uintptr
	Length uint64 // bytes

	account *Account
	block   *block // nil once it is released
	first   int    // granule in the block
	count   int
}

// Release returns the memory to the pool. Its former holder must not touch it any more. It may be called from any goroutine; a
// second call does nothing.
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
