package core

import (
	"math/rand/v2"
	"testing"

	"kvferry/core/status"

	"github.com/stretchr/testify/require"
)

// TestMemoryIsRegisteredAgainExactlyWhenNothingUsesIt compares the registry with a list of the regions that were ever
// there, each with the pins that the test holds on it.
func TestMemoryIsRegisteredAgainExactlyWhenNothingUsesIt(t *testing.T) {
	type use struct {
		*Region
		taken bool
		ends  []func()
	}
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		m := newRegistry()
		var uses []*use
		any := func(wanted func(*use) bool) *use {
			for _, i := range random.Perm(len(uses)) {
				if wanted(uses[i]) {
					return uses[i]
				}
			}
			return nil
		}
		for range 1000 {
			r := Range{0x1000 + uintptr(random.Uint64N(256)), 1 + random.Uint64N(40)}
			switch random.IntN(5) {
			case 0:
				overlapping := any(func(u *use) bool {
					return u.Addr < r.end() && r.Addr < u.end() && (!u.taken || len(u.ends) > 0)
				})
				err := m.add(r, "cpu:0", FullAccess, nil)
				if overlapping == nil {
					require.NoError(t, err)
					uses = append(uses, &use{Region: atOrBelow(m.index, r.Addr)})
				} else {
					require.Equal(t, status.AddressOverlapped, status.Of(err, -1))
				}
			case 1:
				if u := any(func(u *use) bool { return !u.taken }); u != nil {
					region, err := m.PinRemote(uint64(u.Addr), u.Length, Read)
					require.NoError(t, err)
					require.Same(t, u.Region, region)
					u.ends = append(u.ends, region.Unpin)
				}
			case 2:
				if u := any(func(u *use) bool { return len(u.ends) > 0 }); u != nil {
					release := m.Hold(u.Range, "the test") // also of regions that were taken
					u.ends = append(u.ends, release)
				}
			case 3:
				if u := any(func(u *use) bool { return len(u.ends) > 0 }); u != nil {
					u.ends[0]()
					u.ends = u.ends[1:]
				}
			case 4:
				if u := any(func(u *use) bool { return !u.taken || len(u.ends) > 0 }); u != nil {
					region, err := m.take(u.Addr) // the first time, or again
					require.NoError(t, err)
					require.Same(t, u.Region, region)
					u.taken = true
					require.Equal(t, len(u.ends) == 0, region.isDrained())
				}
			}
		}
		for _, u := range uses {
			for _, end := range u.ends {
				end()
			}
			if u.taken {
				require.True(t, u.waitDrained(t.Context()))
				m.forget(u.Region)
			}
		}
		require.Empty(t, m.holds)
		require.Nil(t, m.stillUsed(Range{1, 1 << 30}))
	}
}

func TestWhatIsRememberedOfUnregisteredMemoryIsBounded(t *testing.T) {
	m := newRegistry()
	for i := range uintptr(20 * fewestLeaving) {
		r := Range{0x10000 + i*64, 64}
		require.NoError(t, m.add(r, "cpu:0", FullAccess, nil))
		region, err := m.PinRemote(uint64(r.Addr), 1, Read)
		require.NoError(t, err)
		_, err = m.take(r.Addr)
		require.NoError(t, err)
		region.Unpin() // nobody unregisters it again
		require.LessOrEqual(t, m.leaving.Len(), fewestLeaving)
	}
}

func TestHoldDoesNotReachMemoryThatWasGivenBack(t *testing.T) {
	m := newRegistry()
	require.NoError(t, m.add(Range{0x1000, 64}, "cpu:0", FullAccess, nil))
	region, err := m.PinRemote(0x1000, 1, Read)
	require.NoError(t, err)
	_, err = m.take(0x1000)
	require.NoError(t, err)
	region.Unpin()
	defer m.Hold(Range{0x1000, 64}, "too late")()
	require.True(t, region.waitDrained(t.Context()))
	require.Empty(t, m.holds)
	require.NoError(t, m.add(Range{0x1000, 64}, "cpu:0", FullAccess, nil))
}
