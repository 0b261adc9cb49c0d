package hostmem

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// places empties the table, and returns a function that gives another address each time, the same ones in each run: what
// shares a place in the table does not change from one run to the next.
func places() (somewhere func() uintptr) {
	Forget(0, 1<<addressBits)
	random := rand.New(rand.NewPCG(1, 2))
	return func() uintptr { return uintptr(random.Uint64N(1<<(addressBits-24)) << 24) }
}

func TestOnlyWhatWasTouchedIsSeen(t *testing.T) {
	const kib = 1 << 10
	somewhere := places()
	for _, c := range []struct {
		what           string
		from, length   uint64 // touched
		then, thenSize uint64
		seen           bool
	}{
		{"the same", 100, 1000, 100, 1000, true},
		{"the rest of its page", 100, 1000, 0, 4096, true},
		{"the next page", 100, 1000, 4000, 97, false},
		{"some pages of several", 0, 40 * kib, 8 * kib, 4 * kib, true},
		{"one page more", 0, 40 * kib, 0, 40*kib + 1, false},
		{"one page before", 4 * kib, 40 * kib, 4*kib - 1, 10, false},
		{"a granule", 0, 64 * kib, 0, 64 * kib, true},
		{"a page of a granule", 0, 64 * kib, 20 * kib, 4 * kib, true},
		{"a granule and the pages beside it", 60 * kib, 80 * kib, 60 * kib, 80 * kib, true},
		{"half a granule", 0, 32 * kib, 0, 64 * kib, false},
		{"long", 4 * kib, 8 << 20, 4 * kib, 8 << 20, true},
		{"longer", 4 * kib, 8 << 20, 4 * kib, 8<<20 + 1, false},
		{"nothing", 0, 4096, 0, 0, false},
	} {
		at, now := somewhere(), Now()
		now.Note(at+uintptr(c.from), c.length, Writing)
		for range 2 { // the second time it may be found in another way
			require.Equal(t, c.seen, now.Seen(at+uintptr(c.then), c.thenSize, Writing), c.what)
		}
	}
}

func TestPagesThatWereTouchedOneByOneAreSeenAsOne(t *testing.T) {
	at, now := places()(), Now()
	for page := range uintptr(2 * perGranule) {
		require.False(t, now.Seen(at, 2*perGranule<<pageBits, Reading))
		(now + Time(page%3)).Note(at+page<<pageBits, 1, Reading)
	}
	now += 2
	require.True(t, now.Seen(at, 2*perGranule<<pageBits, Reading))
	require.False(t, now.Seen(at, 2*perGranule<<pageBits, Writing))
	require.True(t, (now-2+valid).Seen(at, 2*perGranule<<pageBits, Reading))
	require.False(t, (now-1+valid).Seen(at, 2*perGranule<<pageBits, Reading), "the first pages were touched before the others")
}

func TestWhatWasReadIsNotSeenForWriting(t *testing.T) {
	at, now := places()(), Now()
	now.Note(at, 4096, Reading)
	require.True(t, now.Seen(at, 4096, Reading))
	require.False(t, now.Seen(at, 4096, Writing))
	now.Note(at, 4096, Writing)
	now.Note(at, 4096, Reading)
	require.True(t, now.Seen(at, 4096, Writing), "reading takes nothing back")
	require.True(t, now.Seen(at, 4096, Reading))
}

func TestWhatWasTouchedIsSeenForASecond(t *testing.T) {
	at, now := places()(), Now()
	now.Note(at, 1<<20, Writing)
	for age := range Time(3 * valid) {
		require.Equal(t, age <= valid, (now+age).Seen(at, 1<<20, Writing), "after %d ticks", age)
	}
	require.False(t, now.Seen(at, 2<<20, Writing))
}

func TestARangeThatIsRegisteredAnewIsForgotten(t *testing.T) {
	somewhere := places()
	for _, length := range []uint64{1, 4096, 100 << 10, 1 << 20, 1 << 30} {
		at, now := somewhere()+4096, Now()
		now.Note(at, 1<<20, Writing)
		now.Note(at-4096, 1, Writing)
		Forget(at, length)
		require.False(t, now.Seen(at, 1, Writing))
		require.False(t, now.Seen(at, length, Writing))
		require.Equal(t, length <= 1<<20, now.Seen(at-4096, 1, Writing), "what is beside it stays, but for a table of it")
	}
}

func TestAddressesThatAreNowhereAreNotSeen(t *testing.T) {
	now := Now()
	for _, r := range []struct {
		addr   uintptr
		length uint64
	}{
		{1 << addressBits, 1}, {1<<addressBits - 1, 2}, {^uintptr(0), 1}, {^uintptr(0) - 10, 100}, {4096, ^uint64(0)}, {0, 0},
	} {
		now.Note(r.addr, r.length, Writing)
		require.False(t, now.Seen(r.addr, r.length, Reading))
	}
}

// A table that is full of other memory may only lose what was noted.
func TestNothingIsSeenThatWasNotTouched(t *testing.T) {
	now, somewhere, random := Now(), places(), rand.New(rand.NewPCG(3, 4))
	touched := map[uint64]bool{}
	var regions []uint64
	for range 64 {
		regions = append(regions, uint64(somewhere())>>pageBits)
	}
	const pages = 4096
	kept := 0
	for range 50_000 { // each page is touched and looked at several times
		page, n := regions[random.IntN(len(regions))]+random.Uint64N(pages), 1+random.Uint64N(40)
		if random.IntN(2) == 0 {
			now.Note(uintptr(page)<<pageBits, n<<pageBits, Writing)
			for i := range n {
				touched[page+i] = true
			}
			continue
		}
		if now.Seen(uintptr(page)<<pageBits, n<<pageBits, Writing) {
			kept++
			for i := range n {
				if !touched[page+i] {
					t.Fatalf("page %#x was never touched", page+i)
				}
			}
		}
	}
	require.Positive(t, kept)
}
