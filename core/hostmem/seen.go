package hostmem

import (
	"sync/atomic"
	"time"

	"kvferry/core/clock"
)

// Which memory was touched lately. A page that a system call has just read or written is in memory, for every kind of memory. The
// kernel has no call that answers this as well: mincore(2) does not know userfaultfd's write protection, and gives a fixed answer
// for files of other users; /proc/self/pagemap does not show memory that a driver has mapped.
//
//  1. Note keeps the time at which a range was touched: of each 64 KiB granule that was touched as a whole, and of each
//     page of the rest.
//  2. Seen looks up whether all of a range was touched within the last second.
//  3. Forget drops a range when it is registered: it may be new memory at an address where other memory was a moment ago.
//
// A page may leave memory within that second: the system swaps it out, or the application discards it with madvise. A thread that
// touches it then keeps its P of Go's scheduler until the page is loaded, as with a page of Go's own memory that was swapped out.
//
// The process has one table, without a lock. Each page and each granule has one place in it, which it shares with others. The place
// holds the one that was touched last; the others count as not seen.
const (
	pageBits    = 12 // of an address. Where the system's pages are larger, each is several of these
	granuleBits = 16
	perGranule  = 1 << (granuleBits - pageBits)
	addressBits = 57 // the most that an address in user space has

	tableBits = 16 // 512 KiB, for 256 MiB in pages or 4 GiB in granules
	tick      = time.Second / 16
	valid     = 16 // ticks for which what was touched counts as in memory
)

// Access is reading or writing. A page that was read may have to be loaded once more before it is written: a page of zeros, or one
// that is write-protected.
type Access uint64

const (
	Reading Access = 0
	Writing Access = 1
)

// An entry of the table has, from its lowest bit on: one bit for an access that wrote, 33 bits of the time, and 30 bits of the
// owner, the page or granule. 33 bits of ticks are 17 years.
const (
	timeAt  = 1
	ownerAt = 34
)

var table [1 << tableBits]atomic.Uint64

// Time is a time in ticks. An entry that was never set is older than valid.
type Time uint64

// Now is the time by clock.Now. A caller that checks several ranges calls it once.
func Now() Time { return timeOf(clock.Now()) }

func timeOf(now time.Duration) Time { return valid + 1 + Time(now/tick) }

// Seen reports whether each page of a range was touched by such an access within the last second.
func (now Time) Seen(addr uintptr, length uint64, a Access) bool {
	page, last, ok := pages(addr, length)
	for ok && page <= last {
		if beginsGranule(page, last) && now.granuleSeen(page/perGranule, a) {
			page += perGranule
			continue
		}
		ok = now.fresh(placeOfPage(page), a) || now.fresh(placeOfGranule(page/perGranule), a)
		page++
	}
	return ok
}

// granuleSeen reports whether a granule was seen as a whole, or all of its pages were. In the second case it is noted as a whole.
func (now Time) granuleSeen(granule uint64, a Access) bool {
	whole := placeOfGranule(granule)
	if now.fresh(whole, a) {
		return true
	}
	oldest := now
	for page := granule * perGranule; page < (granule+1)*perGranule; page++ {
		part := placeOfPage(page)
		if !now.fresh(part, a) {
			return false
		}
		oldest = min(oldest, part.touched())
	}
	oldest.set(whole, a)
	return true
}

// Note notes that a range was just touched.
func (now Time) Note(addr uintptr, length uint64, a Access) {
	page, last, ok := pages(addr, length)
	for ok && page <= last {
		if beginsGranule(page, last) {
			now.note(placeOfGranule(page/perGranule), a)
			page += perGranule
			continue
		}
		now.note(placeOfPage(page), a)
		page++
	}
}

// note does not replace an entry that is still fresh: memory that was written half a second ago, and is read now, counts as written
// for another half.
func (now Time) note(p place, a Access) {
	if !now.fresh(p, a) {
		now.set(p, a)
	}
}

// Forget drops what was noted of a range.
func Forget(addr uintptr, length uint64) {
	if uint64(addr)>>addressBits != 0 {
		return // nothing is noted beyond user space
	}
	page, last, ok := pages(addr, length)
	if !ok || last-page >= 1<<tableBits { // to clear the whole table is faster
		for i := range table {
			table[i].Store(0)
		}
		return
	}
	for granule := page / perGranule; granule <= last/perGranule; granule++ {
		placeOfGranule(granule).clear()
	}
	for ; page <= last; page++ {
		placeOfPage(page).clear()
	}
}

// pages are the first and the last page of a range; false for a range that is empty or not in user space.
func pages(addr uintptr, length uint64) (first, last uint64, ok bool) {
	end := uint64(addr) + length
	return uint64(addr) >> pageBits, (end - 1) >> pageBits, end > uint64(addr) && end <= 1<<addressBits
}

// beginsGranule reports whether a page is the first of a granule, and a range that ends with page last holds all of the granule.
func beginsGranule(page, last uint64) bool { return page%perGranule == 0 && page+perGranule-1 <= last }

// place is the entry for a page or a granule. owner has the bits of its number that do not follow from the place in the table.
type place struct {
	entry *atomic.Uint64
	owner uint64
}

func placeOfPage(page uint64) place       { return placeOf(page, 0) }
func placeOfGranule(granule uint64) place { return placeOf(granule, 1) }

// placeOf puts consecutive pages beside each other, and scatters pages that are far apart.
func placeOf(number, kind uint64) place {
	owner := number>>tableBits<<1 | kind
	scattered := owner * 0x9e3779b97f4a7c15 >> (64 - tableBits)
	return place{&table[(number+scattered)%(1<<tableBits)], owner << ownerAt}
}

func (p place) touched() Time { return Time(p.entry.Load() >> timeAt & (1<<(ownerAt-timeAt) - 1)) }

// clear removes the entry, unless it belongs to another owner.
func (p place) clear() {
	if p.entry.Load()>>ownerAt == p.owner>>ownerAt {
		p.entry.Store(0)
	}
}

func (now Time) set(p place, a Access) { p.entry.Store(p.owner | uint64(now)<<timeAt | uint64(a)) }

// fresh reports whether an entry is of this owner, new enough, and of such an access. It subtracts the entry from the newest one
// that is possible, a write now. The difference is the age in ticks, above a bit that is set if the access did not write. For an
// entry of another owner it is very large.
func (now Time) fresh(p place, a Access) bool {
	missing := (p.owner | uint64(now)<<timeAt | uint64(Writing)) - p.entry.Load()
	return missing <= valid<<timeAt|1 && missing&uint64(a) == 0
}
