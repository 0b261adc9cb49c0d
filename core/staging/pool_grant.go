package staging

import "time"

// Which account gets which granules. These methods are called with the pool's lock held.

// block is page-locked memory.
type block struct {
	addr    uintptr
	used    []bool // by granule
	givenUp bool   // a copy may still touch it, so it is not leased any more
}

func (p *pool) perBlock() int { return int(p.blockSize / Granule) }

// grant leases up to n granules to an account; nil if it may have none now.
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

// mayGrow reports whether the pool may get another block.
func (p *pool) mayGrow() bool {
	return len(p.blocks) < p.maxBlocks && (!p.shrunk || p.growing || !time.Now().Before(p.retry))
}

// spare is how many more granules a role may hold if there are so many blocks in all.
func (p *pool) spare(role Role, blocks int) int {
	all := blocks * p.perBlock()
	limit := max(1, all*3/4)
	return min(limit-p.held[role], all-p.held[Initiator]-p.held[Target])
}

// find returns the first run of n free granules, or otherwise the longest free run; count is 0 if no granule is free.
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

// trim frees the granules of a lease beyond the first n.
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
