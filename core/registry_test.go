package core

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"kvferry/core/status"

	"github.com/google/btree"
	"github.com/stretchr/testify/require"
)

// plainMemory is a model that a Registry is compared with: the owner of each byte of a small part of the address space.
type plainMemory struct {
	base    uint64 // the window is 256 bytes from here on
	owner   [256]*Region
	byStart map[uint64]*Region
}

func (m *plainMemory) in(r Range) (owners []*Region) {
	for i, owner := range m.owner {
		addr := m.base + uint64(i)
		if addr >= uint64(r.Addr) && addr-uint64(r.Addr) < r.Length {
			owners = append(owners, owner)
		}
	}
	return owners
}

func (m *plainMemory) set(r Range, owner *Region) {
	for i := range m.owner {
		addr := m.base + uint64(i)
		if addr >= uint64(r.Addr) && addr-uint64(r.Addr) < r.Length {
			m.owner[i] = owner
		}
	}
}

func distinct(owners []*Region) []*Region {
	var all []*Region
	seen := map[*Region]bool{nil: true}
	for _, o := range owners {
		if !seen[o] {
			seen[o] = true
			all = append(all, o)
		}
	}
	return all
}

// wrapsOrEnds reports whether the first address after a range would be 0 or more.
func wrapsOrEnds(r Range) bool { return r.Length > ^uint64(r.Addr) }

func TestRegistryAgreesWithAPlainModelOfMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, whatever processors there are")
	}
	for _, base := range []uint64{1 << 20, 1<<64 - 256} { // the second window ends with the address space
		for seed := range uint64(20) {
			t.Run(fmt.Sprintf("%#x/%d", base, seed), func(t *testing.T) {
				compareWithModel(t, base, rand.New(rand.NewPCG(seed, base)))
			})
		}
	}
}

func compareWithModel(t *testing.T, base uint64, random *rand.Rand) {
	registry := newRegistry()
	model := &plainMemory{base: base, byStart: map[uint64]*Region{}}
	for range 2000 {
		first, length := random.Uint64N(256), random.Uint64N(40)
		if base+256 != 0 {
			length = min(length, 256-first) // stay in the window
		}
		r := Range{Addr: uintptr(base + first), Length: length}
		switch random.IntN(4) {
		case 0:
			addAndCompare(t, registry, model, r, Access(random.IntN(int(FullAccess)+1)))
		case 1:
			region, err := registry.take(r.Addr)
			if expected := model.byStart[uint64(r.Addr)]; expected == nil {
				require.Equal(t, status.AddressNotRegistered, status.Of(err, -1))
			} else {
				require.NoError(t, err)
				require.Same(t, expected, region)
				require.True(t, region.waitDrained(t.Context()), "a pin was left on %v", region.Range)
				delete(model.byStart, uint64(r.Addr))
				model.set(region.Range, nil)
			}
		case 2:
			pinRemoteAndCompare(t, registry, model, r, Opcode(random.IntN(2)))
		case 3:
			var expected []*Region
			if r.Length > 0 && !wrapsOrEnds(Range{r.Addr, r.Length - 1}) {
				expected = distinct(model.in(r))
			}
			pinned := pinnedOf(registry, r)
			require.Equal(t, expected, pinned, "pinned for %v", r)
			for _, region := range pinned {
				region.Unpin()
			}
		}
	}
}

func addAndCompare(t *testing.T, registry *Registry, model *plainMemory, r Range, access Access) {
	err := registry.add(r, "cpu:0", access, nil)
	switch {
	case r.Length == 0 || wrapsOrEnds(r):
		require.Equal(t, status.InvalidArgument, status.Of(err, -1), "of %v", r)
	case len(distinct(model.in(r))) > 0:
		require.Equal(t, status.AddressOverlapped, status.Of(err, -1), "of %v", r)
	default:
		require.NoError(t, err, "of %v", r)
		added := atOrBelow(registry.index, r.Addr)
		require.Equal(t, r, added.Range)
		require.Equal(t, access, added.Access)
		model.set(r, added)
		model.byStart[uint64(r.Addr)] = added
	}
}

func pinRemoteAndCompare(t *testing.T, registry *Registry, model *plainMemory, r Range, op Opcode) {
	owners := model.in(r)
	region, err := registry.PinRemote(uint64(r.Addr), r.Length, op)
	switch {
	case r.Length == 0 || wrapsOrEnds(r):
		require.Equal(t, status.InvalidArgument, status.Of(err, -1), "of %v", r)
	case uint64(len(owners)) != r.Length || len(distinct(owners)) != 1 || !allSame(owners) || owners[0].Access == NoAccess:
		require.Equal(t, status.AddressNotRegistered, status.Of(err, -1), "of %v", r)
		require.NotErrorIs(t, err, ErrForbidden)
	case owners[0].Access.Allows(op):
		require.NoError(t, err, "of %v", r)
		require.Same(t, owners[0], region)
		region.Unpin()
	default:
		require.Equal(t, status.AddressNotRegistered, status.Of(err, -1), "of %v", r)
		require.ErrorIs(t, err, ErrForbidden)
	}
}

func allSame(owners []*Region) bool {
	for _, o := range owners {
		if o != owners[0] {
			return false
		}
	}
	return true
}

func TestRegisteredRangesAreChecked(t *testing.T) {
	const top = ^uintptr(0)
	for _, c := range []struct {
		r    Range
		want status.Code
	}{
		{Range{0, 1}, status.InvalidArgument},
		{Range{0x1000, 0}, status.InvalidArgument},
		{Range{top, 2}, status.InvalidArgument},
		{Range{top - 9, 11}, status.InvalidArgument},
		{Range{0x1000, 1<<64 - 1}, status.InvalidArgument},
		{Range{top - 9, 10}, status.InvalidArgument}, // the address after it would be 0
		{Range{top - 9, 9}, status.OK},
		{Range{1, 1<<64 - 2}, status.OK},
	} {
		require.Equal(t, c.want, status.Of(newRegistry().add(c.r, "*", FullAccess, nil), -1), "of %v", c.r)
	}
}

func TestPeersGetOnlyWhatOneOpenRegionHolds(t *testing.T) {
	m := newRegistry()
	require.NoError(t, m.add(Range{0x1000, 0x1000}, "cpu:0", FullAccess, nil))
	require.NoError(t, m.add(Range{0x2000, 0x1000}, "cpu:0", FullAccess, nil)) // adjacent
	require.NoError(t, m.add(Range{0x4000, 0x1000}, "cpu:0", NoAccess, nil))
	for _, c := range []struct {
		addr, length uint64
		want         string
	}{
		{0x1000, 0x1000, ""},
		{0x1fff, 1, ""},
		{0x2000, 0x1000, ""},
		{0x1fff, 2, "goes beyond"},
		{0xfff, 2, "not registered"},
		{0x3000, 1, "not registered"},
		{0x2fff, 2, "goes beyond"},
		{0x4000, 1, "not open to peers"},
		{0x1000, 0, "empty or wraps"},
		{0x1000, 1<<64 - 0x1000, "empty or wraps"},
		{0x1000, 1<<64 - 0x1001, "goes beyond"},
		{1<<64 - 1, 1, "empty or wraps"},
	} {
		region, err := m.PinRemote(c.addr, c.length, Read)
		if c.want != "" {
			require.ErrorContains(t, err, c.want, "at %#x+%d", c.addr, c.length)
			require.ErrorContains(t, err, Range{uintptr(c.addr), c.length}.String())
			continue
		}
		require.NoError(t, err, "at %#x+%d", c.addr, c.length)
		region.Unpin()
	}
}

func TestRegionsAreListedInTheOrderOfRegistration(t *testing.T) {
	m := newRegistry()
	for _, addr := range []uintptr{0x5000, 0x1000, 0x9000, 0x3000} {
		require.NoError(t, m.add(Range{addr, 16}, "*", FullAccess, nil))
	}
	_, err := m.take(0x1000)
	require.NoError(t, err)
	require.NoError(t, m.add(Range{0x1000, 16}, "*", FullAccess, nil))

	var listed []uintptr
	m.Each(func(r *Region) bool {
		listed = append(listed, r.Addr)
		return len(listed) < 4
	})
	require.Equal(t, []uintptr{0x5000, 0x9000, 0x3000, 0x1000}, listed)
}

func TestRegistryComparesLogarithmicallyOften(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, whatever processors there are")
	}
	const regions = 100_000
	comparisons := 0
	m := newRegistry()
	m.index = btree.NewG(32, func(a, b entry) bool {
		comparisons++
		return a.addr < b.addr
	})
	order := rand.New(rand.NewPCG(1, 2)).Perm(regions)
	addr := func(i int) uintptr { return uintptr(0x10000 + i*64) }
	const enough = 100 // for each operation: a few searches over 17 bits

	// The loops hold no assertions, which would take most of the time.
	for _, i := range order {
		if m.add(Range{addr(i), 64}, "cpu:0", FullAccess, nil) != nil {
			t.Fatal("not registered")
		}
	}
	require.Less(t, comparisons, enough*regions, "to register")

	comparisons = 0
	for _, i := range order {
		region, err := m.PinRemote(uint64(addr(i))+1, 63, Read)
		if err != nil {
			t.Fatal(err)
		}
		region.Unpin()
		pinnedOf(m, Range{addr(i) + 1, 63})[0].Unpin()
	}
	require.Less(t, comparisons, enough*regions, "to find")

	comparisons = 0
	for _, i := range order {
		if _, err := m.take(addr(i)); err != nil {
			t.Fatal(err)
		}
	}
	require.Less(t, comparisons, enough*regions, "to unregister")
	require.Zero(t, m.index.Len())
	require.Zero(t, m.order.Len())
}

func TestBlocksOfOneRegionArePinnedOnce(t *testing.T) {
	m := newRegistry()
	require.NoError(t, m.add(Range{0x10000, 1 << 20}, "cpu:0", FullAccess, nil))
	require.NoError(t, m.add(Range{0x200000, 1 << 20}, "cpu:0", FullAccess, nil))
	var to pins
	for i := range uintptr(1000) {
		_, _ = m.pinOverlapping(Range{0x10000 + i*64, 64}, &to)
		_, _ = m.pinOverlapping(Range{0x200000 + i*64, 64}, &to)
	}
	require.Len(t, to.regions, 2)
}

func TestFindingARegionAllocatesNothing(t *testing.T) {
	m := newRegistry()
	for i := range uintptr(100) {
		require.NoError(t, m.add(Range{0x10000 + i*64, 64}, "cpu:0", FullAccess, nil))
	}
	room := make([]*Region, 0, 1)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		region, _ := m.PinRemote(0x10000+64, 64, Read)
		region.Unpin()
		to := pins{regions: room}
		_, _ = m.pinOverlapping(Range{0x10000 + 128, 64}, &to)
		to.regions[0].Unpin()
	}))
}

func TestOneRangeMayPinManyRegions(t *testing.T) {
	m := newRegistry()
	for i := range uintptr(20) {
		require.NoError(t, m.add(Range{0x10000 + i*32, 16}, "cpu:0", Access(i)&FullAccess, nil)) // a gap after each
	}
	require.Len(t, pinnedOf(m, Range{0x10008, 32*19 + 1}), 20)
	require.Len(t, pinnedOf(m, Range{0x10010, 16}), 0, "in a gap")
	require.Len(t, pinnedOf(m, Range{0x10010, 17}), 1, "the first byte of the second")
	require.Len(t, pinnedOf(m, Range{1, 1<<64 - 1}), 20, "to the end of the address space")
	require.Empty(t, pinnedOf(m, Range{0x10000, 1<<64 - 1}), "a range that wraps")
}

func TestRegionIsDrainedByItsLastPin(t *testing.T) {
	m := newRegistry()
	require.NoError(t, m.add(Range{0x1000, 16}, "cpu:0", FullAccess, nil))
	first, err := m.PinRemote(0x1000, 16, Read)
	require.NoError(t, err)
	second := pinnedOf(m, Range{0x1008, 16})
	require.Len(t, second, 1)

	taken, err := m.take(0x1000)
	require.NoError(t, err)
	ended, end := context.WithCancel(t.Context())
	end()
	require.False(t, taken.waitDrained(ended), "two pins are left")
	_, err = m.PinRemote(0x1000, 16, Read)
	require.Error(t, err, "a region that was taken gets no new pins")
	first.Unpin()
	require.False(t, taken.waitDrained(ended), "one pin is left")
	second[0].Unpin()
	require.True(t, taken.waitDrained(ended), "drained wins over a context that has ended")
}

func TestRegistryServesManyGoroutines(t *testing.T) {
	const each = 300
	m := newRegistry()
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			base := uintptr(0x100000 * (g + 1))
			for i := range uintptr(each) {
				r := Range{base + i*64, 64}
				if err := m.add(r, "cpu:0", FullAccess, nil); err != nil {
					t.Error(err)
				}
				for _, pinned := range pinnedOf(m, Range{base, each * 64}) {
					pinned.Unpin()
				}
				if region, err := m.PinRemote(uint64(base), 64, Read); err == nil {
					region.Unpin()
				}
				if i%3 == 0 {
					region, err := m.take(r.Addr)
					if err != nil {
						t.Error(err)
						return
					}
					region.waitDrained(t.Context())
				}
			}
		})
	}
	all.Wait()
	require.Equal(t, 8*each*2/3, m.index.Len())
}

// pinnedOf is the regions that are pinned for one range of host memory.
func pinnedOf(m *Registry, r Range) []*Region {
	var to pins
	_, _ = m.pinOverlapping(r, &to)
	return to.regions
}
