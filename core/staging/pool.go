package staging

import (
	"slices"
	"sync"
	"time"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// pool is the blocks of one direction, and who has what of them.
//
//  1. TryLease takes the lowest run of granules that is long enough, lest more blocks be in use, and memory less often in
//     the processor's cache, than need be.
//  2. Where there is no such run the account waits. As long as the pool is below its limit it is asked to grow: a
//     thread of the copier makes a block, and grown takes it.
//  3. serve goes through the accounts that wait, in the order of their coming, when something was given back or the pool
//     has grown: who may have something has it set aside as an offer, is called, and fetches it with TryLease. An offer
//     that is not fetched in a while is revoked, so that an account that has lost interest costs nothing.
//
// What an account may have:
//   - Less than is free: an account gets more only while it holds less than what its role could still have (the dynamic
//     threshold of Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches",
//     IEEE/ACM Transactions on Networking 6(2), 1998). n busy accounts come to hold 1/(n+1) of it each, and there is
//     always something left for the next.
//   - A role has three quarters of the granules at most.
//   - Where the pool cannot grow any more and has no run as long as wanted, an account that holds something gets a run of a
//     quarter of a block or more, or waits: thin leases make short copies and messages. An account that holds
//     nothing gets the longest run there is, however short.
type pool struct {
	name      string // of the device, and the direction
	log       *zap.Logger
	blockSize uint64
	maxBlocks int
	ask       func()         // has the copier make a block
	call      func(*Account) // calls ready, soon
	expiry    *time.Timer

	mu        sync.Mutex
	blocks    []*block // as many as were made, those given up included
	usable    int      // how many are not given up
	held      [2]int   // granules leased and offered, by role
	waiting   []*Account
	offers    []*Account // that have one, oldest first
	growing   bool       // a block is being made
	shrunk    bool       // the last one could not be made
	retry     time.Time  // when it is tried again, then
	exhausted error      // why there is nothing to be leased ever again
	closed    bool
	waits     uint64 // how often an account had to wait
	timing    bool   // expiry runs

	// What is done when the lock has been let go.
	asks  bool
	woken []*Account
}

const (
	// growAgain is how long a pool that could not grow makes do with what it has.
	growAgain = time.Second
	// offerLife is how long an offer is kept at least, and twice that at most, where somebody else waits.
	offerLife = 100 * time.Millisecond
)

// block is page-locked memory.
type block struct {
	addr    uintptr
	used    []bool // by granule
	givenUp bool   // a copy may still touch it: it is not leased any more
}

func newPool(name string, o Options) *pool {
	p := &pool{name: name, log: o.Log, call: (*Account).call, blockSize: o.BlockSize, maxBlocks: int(max(1, o.PoolSize/2/o.BlockSize))}
	p.expiry = time.AfterFunc(time.Hour, p.expire)
	p.expiry.Stop()
	return p
}

// unlock lets the lock go, and does then what has come up.
func (p *pool) unlock() {
	if len(p.waiting) > 0 && len(p.offers) > 0 && !p.timing && !p.closed {
		p.timing = true
		p.expiry.Reset(offerLife)
	}
	asks, woken := p.asks, p.woken
	p.asks, p.woken = false, nil
	p.mu.Unlock()
	if asks {
		p.ask()
	}
	for _, a := range woken {
		p.call(a)
	}
}

// The methods from here on are called with the lock held.

func (p *pool) perBlock() int { return int(p.blockSize / Granule) }

// mayGrow reports whether another block can be hoped for.
func (p *pool) mayGrow() bool {
	return len(p.blocks) < p.maxBlocks && (!p.shrunk || p.growing || !time.Now().Before(p.retry))
}

// spare is how many more granules a role may hold, if so many blocks are all there are.
func (p *pool) spare(role Role, blocks int) int {
	all := blocks * p.perBlock()
	limit := max(1, all*3/4)
	return min(limit-p.held[role], all-p.held[Initiator]-p.held[Target])
}

// grant leases up to n granules to an account, if it may have any.
func (p *pool) grant(a *Account, n int) *Lease {
	mayGrow := p.mayGrow()
	potential := p.usable
	if mayGrow {
		potential += p.maxBlocks - len(p.blocks)
	}
	if a.held >= p.spare(a.role, potential) {
		return nil
	}
	b, first, count := p.find(min(n, p.spare(a.role, p.usable)))
	switch {
	case count < n && mayGrow:
		p.asks = p.asks || !p.growing
		p.growing = true
		return nil
	case count == 0, a.held > 0 && count < min(n, max(1, p.perBlock()/4)):
		return nil
	}
	return p.lease(a, b, first, count)
}

// find returns the first run of n free granules, or else the longest run; count is 0 if there is none.
func (p *pool) find(n int) (in *block, first, count int) {
	for _, b := range p.blocks {
		if b.givenUp {
			continue
		}
		for at := 0; at < len(b.used); at++ {
			run := 0
			for at+run < len(b.used) && run < n && !b.used[at+run] {
				run++
			}
			if run > count {
				in, first, count = b, at, run
			}
			if count == n {
				return in, first, count
			}
			at += run
		}
	}
	return in, first, count
}

func (p *pool) lease(a *Account, b *block, first, count int) *Lease {
	b.mark(first, count, true)
	a.held += count
	p.held[a.role] += count
	l := &Lease{Addr: b.addr + uintptr(first)*Granule, account: a, block: b, first: first, count: count}
	l.Length = uint64(count) * Granule
	return l
}

func (b *block) mark(first, count int, used bool) {
	for i := first; i < first+count; i++ {
		b.used[i] = used
	}
}

// trim gives back what a lease holds beyond n granules.
func (p *pool) trim(l *Lease, n int) {
	l.block.mark(l.first+n, l.count-n, false)
	l.account.held -= l.count - n
	p.held[l.account.role] -= l.count - n
	l.count, l.Length = n, uint64(n)*Granule
}

func (p *pool) release(l *Lease) {
	p.trim(l, 0)
	l.block = nil
}

// wait has an account wait for n granules.
func (p *pool) wait(a *Account, n int) {
	a.want = n
	if !a.waiting {
		a.waiting = true
		p.waiting = append(p.waiting, a)
		p.waits++
	}
}

// leave has it wait no more.
func (p *pool) leave(a *Account) {
	if a.waiting {
		a.waiting = false
		p.waiting = slices.DeleteFunc(p.waiting, func(other *Account) bool { return other == a })
	}
}

// serve makes offers to those who wait and may have something.
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

// wake has the account's ready called.
func (p *pool) wake(a *Account) {
	a.waiting = false
	p.woken = append(p.woken, a)
}

// fetch is the account's offer, cut to n granules if it is longer.
func (p *pool) fetch(a *Account, n int) *Lease {
	l := a.offer
	p.withdraw(a)
	if l.count > n {
		p.trim(l, n)
		p.serve()
	}
	return l
}

// revoke takes an account's offer back, if it has one.
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

// fail tells those who wait that there will be nothing.
func (p *pool) fail(err error) {
	for _, a := range p.waiting {
		a.failure = err
		p.wake(a)
	}
	p.waiting = nil
}

// The methods from here on take the lock.

// expire revokes offers that nobody has fetched.
func (p *pool) expire() {
	p.mu.Lock()
	defer p.unlock()
	p.timing = false
	for len(p.offers) > 0 && time.Since(p.offers[0].offered) >= offerLife {
		p.revoke(p.offers[0])
	}
}

// grown takes a block that was made, or the reason why it could not be.
func (p *pool) grown(addr uintptr, err error) {
	p.mu.Lock()
	defer p.unlock()
	p.growing = false
	switch {
	case err == nil:
		p.blocks = append(p.blocks, &block{addr: addr, used: make([]bool, p.perBlock())})
		p.usable++
		p.shrunk = false
	case p.usable == 0:
		p.fail(err)
	default:
		if !p.shrunk {
			p.log.Warn("staging makes do with fewer blocks", zap.String("device", p.name), zap.Int("blocks", p.usable), zap.Error(err))
		}
		p.shrunk, p.retry = true, time.Now().Add(growAgain)
	}
	p.serve()
}

// giveUp takes the blocks that hold the addresses out of use for good, and returns how many there are by now.
func (p *pool) giveUp(addrs []uintptr) int {
	p.mu.Lock()
	defer p.unlock()
	for _, b := range p.blocks {
		hit := slices.ContainsFunc(addrs, func(addr uintptr) bool { return addr-b.addr < uintptr(p.blockSize) })
		if hit && !b.givenUp {
			b.givenUp = true
			p.usable--
		}
	}
	switch {
	case p.usable > 0:
	case len(p.blocks) == p.maxBlocks:
		p.exhausted = status.Errorf(status.Memory, "%s: all staging blocks were given up, since copies on the stuck device may still touch them", p.name)
		p.fail(p.exhausted)
	default: // nothing is given back any more that would remind it of those who wait
		p.shrunk = false
		p.serve()
	}
	return len(p.blocks) - p.usable
}

// close ends all leasing. Offers are taken back.
func (p *pool) close() {
	p.mu.Lock()
	defer p.unlock()
	p.closed = true
	p.expiry.Stop()
	p.fail(closedError(p.name))
	for len(p.offers) > 0 {
		p.revoke(p.offers[0])
	}
}

// leased is how many bytes are leased, or offered.
func (p *pool) leased() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return uint64(p.held[Initiator]+p.held[Target]) * Granule
}

// drain empties a closed pool: the addresses of its blocks, and of those that were given up.
func (p *pool) drain() (addrs, givenUp []uintptr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.blocks {
		if b.givenUp {
			givenUp = append(givenUp, b.addr)
		} else {
			addrs = append(addrs, b.addr)
		}
	}
	p.blocks, p.usable = nil, 0
	return addrs, givenUp
}

func (p *pool) stats() (blocks int, waits uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.blocks), p.waits
}
