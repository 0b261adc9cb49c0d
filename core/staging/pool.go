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
