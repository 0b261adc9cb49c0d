package fair

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}) }

func nothing() {}

// fill enters by one unit until the gate refuses, and returns what was admitted.
func fill(g *Gate, a netip.Addr, evict func()) (places []*Place) {
	for {
		p, err := g.Enter(a, 1, evict)
		if err != nil {
			return places
		}
		places = append(places, p)
	}
}

func TestOneAddressCannotTakeAll(t *testing.T) {
	g := New(Options{Limit: 100})
	require.Len(t, fill(g, addr(1), nil), 50)
	_, err := g.Enter(addr(1), 1, nil)
	var refusal *Refusal
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, Refusal{Addr: addr(1), Held: 50, Share: 50, Taken: 50, Limit: 100}, *refusal)
	require.Equal(t, uint64(2), g.Stats().Refused)
}

func TestNewcomersFindRoomBesideAddressesThatNeverGiveWay(t *testing.T) {
	g := New(Options{Limit: 128})
	for n := range 20 {
		if n < 2 {
			fill(g, addr(n), nil)
			continue
		}
		_, err := g.Enter(addr(n), 1, nil)
		if n < 2+16 {
			require.NoError(t, err, "newcomer %d", n)
		} else {
			require.Error(t, err)
		}
	}
	require.Equal(t, int64(128), g.Held())
}

func TestTheLargestHolderGivesWayToANewcomer(t *testing.T) {
	g := New(Options{Limit: 16, Share: 16, Newcomers: 1})
	var ofStranger, ofPeer int
	for range 4 {
		_, err := g.Enter(addr(1), 1, func() { ofPeer++ })
		require.NoError(t, err)
	}
	for range 12 {
		p, err := g.Enter(addr(2), 1, func() { ofStranger++ })
		require.NoError(t, err)
		require.True(t, p.SetRank(Spared), "a rank does not protect the largest holder")
	}
	for n := range 5 {
		_, err := g.Enter(addr(10+n), 1, nothing)
		require.NoError(t, err)
	}
	require.Equal(t, 5, ofStranger)
	require.Zero(t, ofPeer)
}

func TestTheOldestSilentOneOfAnAddressGivesWayToANewOneOfIt(t *testing.T) {
	g := New(Options{Limit: 8, Share: 4})
	var evicted []int
	for n := range 6 {
		p, err := g.Enter(addr(1), 1, func() { evicted = append(evicted, n) })
		require.NoError(t, err)
		if n == 0 {
			require.True(t, p.SetRank(Busy))
		}
		if n == 1 {
			require.True(t, p.SetRank(Idle))
		}
	}
	require.Equal(t, []int{2, 3}, evicted)
}

func TestAmongEqualHoldersTheLowestRankGivesWay(t *testing.T) {
	for _, rank := range []Rank{Silent, Idle, Spared} {
		g := New(Options{Limit: 4, Newcomers: 1, Little: 1})
		evicted := -1
		for n := range 4 {
			p, err := g.Enter(addr(n), 1, func() { evicted = n })
			require.NoError(t, err)
			p.SetRank(Busy)
			if n == 1 {
				p.SetRank(rank)
			}
			if n == 3 && rank < Spared {
				p.SetRank(rank + 1)
			}
		}
		_, err := g.Enter(addr(9), 1, nothing)
		require.NoError(t, err)
		require.Equal(t, 1, evicted, "rank %d", rank)
	}
}

func TestPeersOfOneAddressThatComeAtOnceAreSparedForAWhile(t *testing.T) {
	g := New(Options{Limit: 4, Grace: time.Hour})
	first, err := g.Enter(addr(1), 1, nothing)
	require.NoError(t, err)
	_, err = g.Enter(addr(1), 1, nothing)
	require.NoError(t, err)
	_, err = g.Enter(addr(1), 1, nothing)
	var refusal *Refusal
	require.ErrorAs(t, err, &refusal)
	require.Positive(t, refusal.Retry)
	require.LessOrEqual(t, refusal.Retry, time.Hour)
	require.True(t, first.SetRank(Idle))
	_, err = g.Enter(addr(1), 1, nothing)
	require.NoError(t, err, "an idle one gives way at once")
	_, err = g.Enter(addr(1), 1, nothing)
	require.Error(t, err)
	_, err = g.Insist(addr(1), 1, nothing)
	require.NoError(t, err)

	g = New(Options{Limit: 4, Newcomers: 1, Grace: time.Hour})
	fill(g, addr(1), nothing)
	fill(g, addr(2), nothing)
	for n := range 2 {
		_, err = g.Enter(addr(3+n), 1, nothing)
		require.NoError(t, err, "the grace is not for newcomers")
	}
}

func TestABusyHoldingNeverGivesWay(t *testing.T) {
	g := New(Options{Limit: 1})
	p, err := g.Enter(addr(1), 1, func() { t.Error("evicted") })
	require.NoError(t, err)
	require.True(t, p.SetRank(Busy))
	_, err = g.Enter(addr(2), 1, nothing)
	require.Error(t, err)
}

func TestAnEvictedHoldingIsGone(t *testing.T) {
	g := New(Options{Limit: 1})
	p, err := g.Enter(addr(1), 1, nothing)
	require.NoError(t, err)
	_, err = g.Enter(addr(2), 1, nothing)
	require.NoError(t, err)
	require.False(t, p.SetRank(Busy))
	require.NoError(t, p.Resize(7))
	p.Leave()
	require.Equal(t, Stats{Held: 1, Addresses: 1, Evicted: 1}, g.Stats())
}

func TestANetworkOfIPv6SharesAsOneAddress(t *testing.T) {
	g := New(Options{Limit: 1000})
	inNetwork := func(n int) netip.Addr {
		return netip.AddrFrom16([16]byte{0xfd, 14: byte(n >> 8), 15: byte(n)})
	}
	for n := range 10_000 {
		_, _ = g.Enter(inNetwork(n), 1, nil)
	}
	require.LessOrEqual(t, g.Held(), int64(563), "an eighth more than an address")
	require.Len(t, fill(g, netip.MustParseAddr("fd00:0:0:1::1"), nil), 312, "the rest, but for the newcomers' part")

	g = New(Options{Limit: 1000})
	require.Len(t, fill(g, inNetwork(1), nil), 500)
	_, err := g.Enter(inNetwork(2), 1, nil)
	require.NoError(t, err, "another host in the network of a greedy one")
}

func TestAHostHasTheSameShareByIPv6AsByIPv4(t *testing.T) {
	v4, v6 := addr(1), netip.MustParseAddr("fd00::1")
	for _, o := range []Options{{Limit: 1}, {Limit: 2}, {Limit: 7}, {Limit: 128}, {Limit: 1024, Share: 768}, {Limit: 1000, Share: 1000}} {
		require.Len(t, fill(New(o), v6, nil), len(fill(New(o), v4, nil)), "%+v", o)
	}
	require.Len(t, fill(New(Options{Limit: 1024, Share: 768}), v6, nil), 768)
}

func TestTheProgramItselfHasTheWholeLimit(t *testing.T) {
	g := New(Options{Limit: 10})
	require.Len(t, fill(g, netip.Addr{}, nil), 10)
}

func TestResizeKeepsTheLimits(t *testing.T) {
	g := New(Options{Limit: 100})
	p, err := g.Enter(addr(1), 10, nil)
	require.NoError(t, err)
	require.NoError(t, p.Resize(50))
	require.Error(t, p.Resize(51))
	require.Equal(t, int64(50), g.Held())
	require.NoError(t, p.Resize(5))
	require.Equal(t, int64(5), g.Held())
	p.Leave()
	p.Leave()
	require.Equal(t, Stats{Refused: 1}, g.Stats())
}

func TestAddrOf(t *testing.T) {
	for text, a := range map[string]net.Addr{
		"10.0.0.1": &net.TCPAddr{IP: net.ParseIP("::ffff:10.0.0.1"), Port: 5},
		"fe80::1":  &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"},
	} {
		require.Equal(t, netip.MustParseAddr(text), AddrOf(a))
	}
	require.False(t, AddrOf(&net.UnixAddr{Name: "@kvferry"}).IsValid())
	require.False(t, AddrOf(nil).IsValid())
}

// model is what the gate must agree with.
type model struct {
	t       *testing.T
	options Options
	gate    *Gate
	live    []*holding
}

type holding struct {
	place   *Place
	addr    netip.Addr
	units   int64
	rank    Rank
	evicted bool
}

func (m *model) held(of func(netip.Addr) bool) (sum int64) {
	for _, h := range m.live {
		if !h.evicted && of(h.addr) {
			sum += h.units
		}
	}
	return sum
}

func (m *model) all() int64 { return m.held(func(netip.Addr) bool { return true }) }

// check compares the whole gate with the model.
func (m *model) check(peers []netip.Addr) {
	require.Equal(m.t, m.all(), m.gate.Held())
	require.LessOrEqual(m.t, m.gate.Held(), m.options.Limit)
	for _, a := range peers {
		network, _ := a.Prefix(min(a.BitLen(), networkBits))
		held := m.held(network.Contains)
		most := m.options.Share
		if a.Is6() {
			most = m.options.ofNetwork().Limit
		}
		require.LessOrEqual(m.t, held, most, "network %v", network)
		require.LessOrEqual(m.t, m.held(func(o netip.Addr) bool { return o == a }), m.options.Share, "address %v", a)
	}
}

func (m *model) enter(a netip.Addr, units int64, mayGive bool) {
	h := &holding{addr: a, units: units, rank: Silent}
	var evict func()
	if mayGive {
		evict = func() {
			require.NotEqual(m.t, Busy, h.rank)
			require.False(m.t, h.evicted, "evicted twice")
			h.evicted = true
		}
	}
	before, mine := m.all(), m.held(func(o netip.Addr) bool { return o == a })
	place, err := m.gate.Enter(a, units, evict)
	if err == nil {
		h.place = place
		m.live = append(m.live, h)
		return
	}
	if mine == 0 && units == 1 && a.Is4() {
		require.Equal(m.t, m.options.Limit, before, "a newcomer is refused while there is room")
		for _, h := range m.live {
			require.False(m.t, h.place.element != nil && h.rank < Busy && !h.evicted,
				"a newcomer is refused, though %v may give way", h.addr)
		}
	}
}

func TestRandomUseKeepsTheLimits(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		o := Options{Limit: 1 + r.Int64N(60)}.complete()
		m := &model{t: t, options: o, gate: New(o)}
		var peers []netip.Addr
		for n := range 1 + r.IntN(12) {
			peers = append(peers, addr(n), netip.AddrFrom16([16]byte{0xfd, 7: byte(n % 2), 15: byte(n)}))
		}
		greedy := r.Int64N(3)
		for range 400 {
			switch h := m.any(r); {
			case h == nil || r.IntN(10) < 5:
				m.enter(peers[r.IntN(len(peers))], 1+r.Int64N(greedy+1), r.IntN(4) > 0)
			case h.evicted:
				require.False(t, h.place.SetRank(Idle))
				h.place.Leave()
				m.forget(h)
			case r.IntN(3) == 0:
				h.place.Leave()
				m.forget(h)
			case r.IntN(3) == 0:
				if units := 1 + r.Int64N(5); h.place.Resize(units) == nil {
					h.units = units
				}
			default:
				h.rank = Rank(r.IntN(4))
				require.True(t, h.place.SetRank(h.rank))
			}
			m.check(peers)
		}
		for _, h := range m.live {
			h.place.Leave()
		}
		require.Zero(t, m.gate.Held())
		require.Zero(t, m.gate.Stats().Addresses, "addresses without holdings are forgotten")
	}
}

func (m *model) any(r *rand.Rand) *holding {
	if len(m.live) == 0 {
		return nil
	}
	return m.live[r.IntN(len(m.live))]
}

func (m *model) forget(h *holding) {
	for i := range m.live {
		if m.live[i] == h {
			m.live = append(m.live[:i], m.live[i+1:]...)
			return
		}
	}
}

func TestConcurrentUseEvictsNoBusyHolding(t *testing.T) {
	g := New(Options{Limit: 8})
	var users sync.WaitGroup
	for n := range 16 {
		users.Go(func() {
			for range 500 {
				var busy, ended atomic.Bool
				p, err := g.Enter(addr(n%5), 1, func() {
					if busy.Load() || ended.Swap(true) {
						t.Error("a busy holding was evicted, or one twice")
					}
				})
				if err != nil {
					var refusal *Refusal
					if !errors.As(err, &refusal) {
						t.Error(err)
					}
					continue
				}
				if p.SetRank(Busy) {
					busy.Store(true)
					busy.Store(false)
					p.SetRank(Idle)
				}
				p.Leave()
			}
		})
	}
	users.Wait()
	require.Zero(t, g.Held())
}
