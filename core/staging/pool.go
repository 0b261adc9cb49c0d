package staging

import (
	"slices"
	"sync"
	"time"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// pool is the blocks of one direction, and the leases of their granules.
//
//  1. TryLease takes the lowest run of granules that is long enough. So few blocks are in use, and their memory is more often in
//     the processor's cache (pool_grant.go).
//  2. If there is no such run the account waits. While the pool is below its limit the copier is asked for a block: one of its
//     threads makes it, and calls grown.
//  3. When a lease is released, or the pool has grown, serve goes through the waiting accounts, oldest first. It sets granules
//     aside for an account as an offer, and calls the account's ready, which fetches the offer with TryLease. An offer that is
//     not fetched for a while is revoked (pool_offer.go).
//
// How much an account may have:
//   - Less than is free: an account gets more only while it holds less than what its role could still have (the dynamic
//     threshold of Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches",
//     IEEE/ACM Transactions on Networking 6(2), 1998). n busy accounts come to hold 1/(n+1) of it each, and there is
//     always something free for the next.
//   - At most three quarters of the granules for all accounts of a role.
//   - If the pool cannot grow any more and has no run of the wanted length, an account that already holds granules gets a run of
//     a quarter of a block or more, or waits: short leases make short copies and messages. An account that holds none gets the
//     longest free run, of any length.
type pool struct {
	name      string // of the device, and the direction
	log       *zap.Logger
	blockSize uint64
	maxBlocks int
	ask       func()         // asks the copier for a block
	call      func(*Account) // starts a call of the account's ready
	expiry    *time.Timer

	mu        sync.Mutex
	blocks    []*block // all blocks, those that were given up included
	usable    int      // how many were not given up
	held      [2]int   // granules that are leased or offered, by role
	waiting   []*Account
	offers    []*Account // accounts that have an offer, oldest first
	growing   bool       // a block is being made
	shrunk    bool       // the last block could not be made
	retry     time.Time  // when the pool tries to grow again after that
	exhausted error      // why nothing can be leased any more, for good
	closed    bool
	waits     uint64 // how often an account had to wait
	timing    bool   // expiry runs

	// Done after the lock was released, see unlock.
	asks  bool
	woken []*Account
}

const (
	// growAgain is how long a pool that could not grow waits before it tries again.
	growAgain = time.Second
	// offerLife is how long an offer is kept at least, and half of the longest time that it is kept while other accounts wait.
	offerLife = 100 * time.Millisecond
)

func newPool(name string, o Options) *pool {
	p := &pool{name: name, log: o.Log, call: (*Account).call, blockSize: o.BlockSize, maxBlocks: int(max(1, o.PoolSize/2/o.BlockSize))}
	p.expiry = time.AfterFunc(time.Hour, p.expire)
	p.expiry.Stop()
	return p
}

// unlock releases the lock. After that it asks for a block, and calls the accounts that were woken.
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

// grown adds a new block; err is why it could not be made.
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
			p.log.Warn("staging goes on with fewer blocks", zap.String("device", p.name), zap.Int("blocks", p.usable), zap.Error(err))
		}
		p.shrunk, p.retry = true, time.Now().Add(growAgain)
	}
	p.serve()
}

// giveUp takes the blocks with these addresses out of use for good, and returns how many blocks were given up so far.
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
	default: // perhaps no lease is outstanding whose release would call serve
		p.shrunk = false
		p.serve()
	}
	return len(p.blocks) - p.usable
}

// close ends all leasing, and revokes the offers.
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

// leased is how many bytes are leased or offered.
func (p *pool) leased() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return uint64(p.held[Initiator]+p.held[Target]) * Granule
}

// drain empties a closed pool. It returns the addresses of the blocks, and of those that were given up.
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
