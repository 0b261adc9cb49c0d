package staging

import (
	"slices"
	"time"
)

// Accounts that wait for granules, and what is set aside for them. These methods, but for expire, are called with the pool's
// lock held.

// wait adds an account to those that wait. It wants n granules.
func (p *pool) wait(a *Account, n int) {
	a.want = n
	if !a.waiting {
		a.waiting = true
		p.waiting = append(p.waiting, a)
		p.waits++
	}
}

// stopWaiting removes an account from those that wait.
func (p *pool) stopWaiting(a *Account) {
	if a.waiting {
		a.waiting = false
		p.waiting = slices.DeleteFunc(p.waiting, func(other *Account) bool { return other == a })
	}
}

// serve makes an offer to each waiting account that may have granules.
func (p *pool) serve() {
	if p.closed {
		return
	}
	p.waiting = slices.DeleteFunc(p.waiting, func(a *Account) bool {
		a.offer = p.grant(a, a.want)
		if a.offer != nil {
			a.offered = time.Now()
			p.offers = append(p.offers, a)
			p.wake(a)
		}
		return a.offer != nil
	})
}

// wake notes that the account's ready is to be called.
func (p *pool) wake(a *Account) {
	a.waiting = false
	p.woken = append(p.woken, a)
}

// fetch returns the account's offer, of at most n granules.
func (p *pool) fetch(a *Account, n int) *Lease {
	l := a.offer
	p.withdraw(a)
	if l.count > n {
		p.trim(l, n)
		p.serve()
	}
	return l
}

// revoke releases an account's offer, if it has one.
func (p *pool) revoke(a *Account) {
	if a.offer != nil {
		p.release(a.offer)
		p.withdraw(a)
		p.serve()
	}
}

func (p *pool) withdraw(a *Account) {
	a.offer = nil
	p.offers = slices.DeleteFunc(p.offers, func(other *Account) bool { return other == a })
}

// fail wakes all waiting accounts: TryLease returns the error to them.
func (p *pool) fail(err error) {
	for _, a := range p.waiting {
		a.failure = err
		p.wake(a)
	}
	p.waiting = nil
}

// expire revokes the offers that were not fetched in time.
func (p *pool) expire() {
	p.mu.Lock()
	defer p.unlock()
	p.timing = false
	for len(p.offers) > 0 && time.Since(p.offers[0].offered) >= offerLife {
		p.revoke(p.offers[0])
	}
}
